"""What comes back: fields of an answer that are not the upstream's to say."""

from addons.reply.fields import kept_reply_fields

__all__ = ["kept_reply_fields"]
