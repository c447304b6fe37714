"""Checks of files: private ones are private, the CA can be used, the audit can be written."""

from __future__ import annotations

import datetime as dt
import os
import resource
import shutil
import stat
from pathlib import Path

from cryptography import x509

from addons.audit.config import FileSink
from ostiary.ca import CERT_FILE, KEY_FILE, CaError, load
from ostiary.descriptors import RESERVE, carried
from ostiary.doctor.finding import Finding, Setup, counted
from ostiary.settings.model import Limits
from vault.hashicorp.config import AppRoleAuth, TokenFileAuth
from vault.sealed import KeyFile

EXPIRES_SOON = dt.timedelta(days=30)
DESCRIPTORS_A_CONNECTION = 2
"""One towards the caller, one towards the upstream."""


def _private(setup: Setup) -> list[tuple[str, Path]]:
    settings, _ = setup.loaded
    found = [("the CA key", settings.ca_dir / KEY_FILE)]
    found += [(f"the key of listener {one.name}", one.tls.key) for one in settings.listen if one.tls is not None]
    if settings.store == "sealed":
        if settings.secrets_file is not None:
            found.append(("the secrets file", settings.secrets_file))
        if isinstance(settings.secrets_key, KeyFile):
            found.append(("the key of the secrets file", settings.secrets_key.path))
    elif settings.vault is not None:
        auth = settings.vault.auth
        if isinstance(auth, TokenFileAuth):
            found.append(("the Vault token file", auth.file))
        if isinstance(auth, AppRoleAuth) and auth.secret_id_file is not None:
            found.append(("the secret id file", auth.secret_id_file))
        if isinstance(auth, AppRoleAuth) and auth.wrapped_file is not None:
            found.append(("the file of the wrapped secret id", auth.wrapped_file))
        if settings.vault.client_key is not None:
            found.append(("the key of Vault's client certificate", settings.vault.client_key))
    return found


async def modes(setup: Setup) -> list[Finding]:
    """Private files are open to their owner alone, folders of audit files to no stranger's pen."""
    settings, _ = setup.loaded
    bad: list[Finding] = []
    looked = 0
    for what, path in _private(setup):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # whoever needs the file says that it is missing
        looked += 1
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            found = f"{what} {path} is open to others (mode {stat.S_IMODE(mode):04o})"
            bad.append(Finding("files.modes", "fail", found, f"chmod 600 {path}"))
    for sink in settings.audit.sinks:
        folder = sink.path.parent if isinstance(sink, FileSink) else None
        if folder is not None and folder.is_dir():
            mode = folder.stat().st_mode
            looked += 1
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                found = f"anybody may replace audit files in {folder} (mode {stat.S_IMODE(mode):04o})"
                bad.append(Finding("files.modes", "fail", found, f"chmod o-w {folder}"))
    return bad or [Finding("files.modes", "ok", f"{counted(looked, 'file')} and folders looked at: private")]


async def ca_usable(setup: Setup) -> list[Finding]:
    """Certificate and key are there, fit each other, have not expired and carry what strict clients ask for."""
    settings, _ = setup.loaded
    folder = settings.ca_dir
    if not (folder / KEY_FILE).exists() and not (folder / CERT_FILE).exists():
        mend = "start ostiary run once, or run ostiary ca show: the first start makes the CA"
        return [Finding("ca.usable", "fail", f"there is no CA in {folder} yet", mend)]
    try:
        authority = load(folder, dt.datetime.now(dt.UTC))
    except CaError as error:
        text, _, mend = str(error).rpartition(": ")
        mend = mend if text else f"restore {folder} from a backup, or remove it for a new CA"
        return [Finding("ca.usable", "fail", str(error), mend)]
    try:
        authority.cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        found = f"the CA {folder / CERT_FILE} has no subject key identifier: strict clients refuse its leaves"
        mend = f"remove {KEY_FILE} and {CERT_FILE} in {folder} for a new CA, and give it to the callers"
        return [Finding("ca.usable", "fail", found, mend)]
    left = authority.cert.not_valid_after_utc - dt.datetime.now(dt.UTC)
    if left < EXPIRES_SOON:
        mend = f"plan a new CA: remove {KEY_FILE} and {CERT_FILE} in {folder}, and give the new one to the callers"
        return [Finding("ca.usable", "warn", f"the CA expires in {left.days} days", mend)]
    return [Finding("ca.usable", "ok", f"{folder / CERT_FILE} is good for {left.days} days")]


async def audit(setup: Setup) -> list[Finding]:
    """Every audit file could be written, and its disk has room."""
    settings, _ = setup.loaded
    bad: list[Finding] = []
    for sink in settings.audit.sinks:
        if not isinstance(sink, FileSink):
            continue
        path, folder = sink.path, sink.path.parent
        if not folder.is_dir():
            bad.append(Finding("audit.writable", "fail", f"there is no folder {folder}", f"mkdir -p {folder}"))
        elif path.is_dir():
            bad.append(Finding("audit.writable", "fail", f"{path} is a folder", "name a file under audit.sinks"))
        elif not os.access(path if path.exists() else folder, os.W_OK):
            mend = f"let uid {os.geteuid()} write {path}"
            bad.append(Finding("audit.writable", "fail", f"{path} cannot be written by uid {os.geteuid()}", mend))
        elif (free := shutil.disk_usage(folder).free) < settings.audit.reserve_bytes:
            found = (
                f"the disk of {path} has {free} bytes free, less than audit.reserve ({settings.audit.reserve_bytes})"
            )
            bad.append(Finding("audit.writable", "fail", found, f"make room on the disk of {folder}"))
    return bad or [Finding("audit.writable", "ok", f"{counted(len(settings.audit.sinks), 'sink')} can be written")]


async def descriptors(setup: Setup) -> list[Finding]:
    """The descriptor limit holds as many connections as `limits.connections` promises."""
    settings, _ = setup.loaded
    wanted = settings.limits.connections
    # `run` raises its soft limit to the hard one.
    _soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or carried(wanted, most, asked=False) == wanted:
        return [Finding("limits.descriptors", "ok", f"there are descriptors for {wanted} connections")]
    held = carried(wanted, most, asked=False)
    if wanted == Limits().connections:
        return [Finding("limits.descriptors", "ok", f"{most} descriptors carry {held} connections")]
    needed = wanted * DESCRIPTORS_A_CONNECTION + RESERVE
    found = f"{most} descriptors do not hold limits.connections {wanted}: {held} connections are taken"
    mend = f"ulimit -Hn {needed} (systemd: LimitNOFILE={needed}), or limits: {{connections: {held}}}"
    return [Finding("limits.descriptors", "warn", found, mend)]
