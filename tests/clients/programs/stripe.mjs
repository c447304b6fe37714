// The stripe package: create with an idempotency key, then list. It speaks node:https unless told to use fetch.
import Stripe from "stripe";

const client = new Stripe(process.env.STRIPE_API_KEY, {
  maxNetworkRetries: 0,
  ...(process.argv[2] === "fetch" ? { httpClient: Stripe.createFetchHttpClient() } : {}),
});
const made = await client.customers.create({ name: "Ada" }, { idempotencyKey: "order-117" });
console.log(made.id);
const listed = await client.customers.list({ limit: 1 });
console.log(listed.data[0].id);
