"""Signs as stripe-python's own tests do, and has its verifier agree: prints the field."""

import datetime as dt
import sys

import stripe

key, body = sys.argv[1], sys.argv[2]
at = int(dt.datetime.now(dt.UTC).timestamp())
signature = stripe.WebhookSignature._compute_signature(f"{at}.{body}", key)
field = f"t={at},v1={signature}"
stripe.Webhook.construct_event(body, field, key)
print(field)
