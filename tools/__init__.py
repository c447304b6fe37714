"""Tools of the repository: set-up and the demonstration."""
