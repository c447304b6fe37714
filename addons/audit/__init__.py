"""The audit log: one record opens before a credential is used and closes with the outcome. No record, no credential."""

from addons.audit.config import AuditConfig, FileSink, StdoutSink
from addons.audit.files import SinkError
from addons.audit.log import AuditLog
from addons.audit.record import AuditUnavailable, Fields, OpenRecord

__all__ = ["AuditConfig", "AuditLog", "AuditUnavailable", "Fields", "FileSink", "OpenRecord", "SinkError", "StdoutSink"]
