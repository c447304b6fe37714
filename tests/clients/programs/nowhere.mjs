// Names lead nowhere: what does not pass the proxy fails at once and reaches nobody.
import dns from "node:dns";

dns.lookup = (name, options, done) => {
  const error = Object.assign(new Error(`getaddrinfo ENOTFOUND ${name}`), { code: "ENOTFOUND" });
  process.nextTick(typeof options === "function" ? options : done, error);
};
