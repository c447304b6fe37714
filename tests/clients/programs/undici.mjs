// undici as a package of its own, with the agent it offers for the proxy variables.
import { EnvHttpProxyAgent, request } from "undici";

const agent = new EnvHttpProxyAgent();
const answer = await request("https://api.example.com/v1", {
  dispatcher: agent,
  method: "POST",
  headers: { "content-type": "application/json", authorization: `Bearer ${process.env.API_KEY}` },
  body: JSON.stringify({ question: "undici" }),
});
console.log(answer.statusCode, await answer.body.text());
await agent.close();
