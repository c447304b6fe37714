"""The stripe package: it reads no variable for its roots, so the program tells them; the rest is as it comes."""

import os

import stripe

stripe.api_key = os.environ["STRIPE_API_KEY"]
stripe.ca_bundle_path = os.environ["SSL_CERT_FILE"]
made = stripe.Customer.create(name="Ada", idempotency_key="order-117")
print(made.object, stripe.Customer.list(limit=1).data[0].object)
