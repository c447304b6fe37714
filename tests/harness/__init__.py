"""What end-to-end, attack and fault tests are written with: the real process, scripted upstreams, clients that can do
everything wrong, and a scan for canaries."""
