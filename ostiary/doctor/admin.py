"""Checks of the admin API: somebody may call it, and nobody else can take its socket's place."""

from __future__ import annotations

import stat

from ostiary.doctor.finding import Finding, Setup, counted


async def api(setup: Setup) -> list[Finding]:
    """Tokens are there where the API is opened, and the folder of its socket is no stranger's."""
    settings, _ = setup.loaded
    admin = settings.admin
    if admin is None or admin.bind is None:
        return [Finding("admin.api", "ok", "the admin API is not opened")]
    path = admin.bind.path
    if path is not None and path.parent.is_dir():
        mode = path.parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            found = f"anybody may put a socket in the place of {path} and be sent the tokens (mode {stat.S_IMODE(mode):04o} of its folder)"
            return [Finding("admin.api", "fail", found, f"chmod o-w {path.parent}")]
    if not admin.tokens:
        return [Finding("admin.api", "ok", "no admin token: only the probes answer")]
    return [Finding("admin.api", "ok", f"{counted(len(admin.tokens), 'admin token')} for {admin.bind}")]
