// Linear's own SDK, as its page shows it; the key is the preset's placeholder.
import { LinearClient } from "@linear/sdk";

const client = new LinearClient({ apiKey: process.env.LINEAR_API_KEY });
console.log((await client.viewer).name);
