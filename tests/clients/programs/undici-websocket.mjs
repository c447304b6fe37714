// undici's WebSocket, with its agent for the proxy variables and a header of its own.
import { EnvHttpProxyAgent, WebSocket } from "undici";

const agent = new EnvHttpProxyAgent();
const headers = { authorization: `Bearer ${process.env.API_KEY}` };
const socket = new WebSocket("wss://api.example.com/v1/live", { dispatcher: agent, headers });
socket.addEventListener("open", () => socket.send("ping"));
socket.addEventListener("message", (message) => {
  console.log(message.data);
  socket.close();
});
socket.addEventListener("close", () => agent.close());
socket.addEventListener("error", (event) => {
  console.error(event.error ?? event.message);
  process.exit(1);
});
