// Node's own WebSocket: the handshake goes through the proxy, then frames pass both ways.
const socket = new WebSocket("wss://api.example.com/v1/live");
socket.addEventListener("open", () => socket.send("ping"));
socket.addEventListener("message", (message) => {
  console.log(message.data);
  socket.close();
});
socket.addEventListener("error", (event) => {
  console.error(event.error ?? event.message);
  process.exit(1);
});
