"""Checks of listeners' certificates: they can serve, callers that verify will accept them, and the names fit."""

from __future__ import annotations

import datetime as dt

from ostiary.certificate import CertificateFault, ListenerCertificate, read_certificate
from ostiary.doctor.files import EXPIRES_SOON
from ostiary.doctor.finding import Finding, Setup, counted
from ostiary.settings.model import ListenSetting

_ID = "listeners.tls"
SOON_PART = 5
"""Of its whole life: a certificate with less left expires soon, where that is less than a month."""


async def certificates(setup: Setup) -> list[Finding]:
    """Every certificate fits its key, is in date, and names what the listener is called by."""
    settings, _ = setup.loaded
    secured = [one for one in settings.listen if one.tls is not None]
    found = [finding for one in secured if (finding := _judged(one)) is not None]
    if found:
        return found
    what = (
        f"{counted(len(secured), 'certificate')} of listeners looked at: in date"
        if secured
        else "no listener speaks TLS"
    )
    return [Finding(_ID, "ok", what)]


def _judged(setting: ListenSetting) -> Finding | None:
    if setting.tls is None:
        return None
    at = f"listener {setting.name}"
    try:
        served = read_certificate(setting.tls.cert, setting.tls.key)
    except CertificateFault as fault:  # between the load of the settings and now
        return Finding(_ID, "fail", f"{at}: {fault.message}", fault.mend)
    now = dt.datetime.now(dt.UTC)
    cert = setting.tls.cert
    if served.expired(now):
        since = served.leaf.not_valid_after_utc.date()
        return Finding(
            _ID, "fail", f"{at}: {cert} expired on {since}", f"renew {cert}; a running proxy takes it by itself"
        )
    if served.too_early(now):
        since = served.leaf.not_valid_before_utc
        return Finding(_ID, "fail", f"{at}: {cert} is not valid before {since}", "set this machine's clock, or wait")
    if not served.names:
        found = f"{at}: {cert} names no host under subjectAltName: clients refuse it"
        return Finding(_ID, "fail", found, "make one with subjectAltName: DNS:… or IP:…")
    return _soon(at, served, now) or _unnamed(at, setting, served)


def _soon(at: str, served: ListenerCertificate, now: dt.datetime) -> Finding | None:
    """Certificates of a day's life are renewed at two thirds of it: what is left for longer has been forgotten."""
    ends, begins = served.leaf.not_valid_after_utc, served.leaf.not_valid_before_utc
    left = ends - now
    if left >= min(EXPIRES_SOON, (ends - begins) / SOON_PART):
        return None
    shown = f"{left.days} days" if left.days else f"{left.seconds // 3600} hours"
    return Finding(
        _ID, "warn", f"{at}: its certificate expires in {shown}", "renew it; a running proxy takes it by itself"
    )


def _unnamed(at: str, setting: ListenSetting, served: ListenerCertificate) -> Finding | None:
    """A name under `hosts` that no client could verify."""
    missing = [host for host, _ in setting.hosts if not any(_covers(name, host) for name in served.names)]
    if not missing:
        return None
    found = f"{at}: its certificate does not name {', '.join(missing)}, which stand under hosts"
    return Finding(_ID, "warn", found, f"name them in the certificate, or take them off hosts of {setting.name}")


def _covers(name: str, host: str) -> bool:
    lowered = name.lower()
    return lowered == host or (lowered.startswith("*.") and lowered[2:] == host.partition(".")[2])
