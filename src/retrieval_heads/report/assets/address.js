/** What is open stands in the page's address (`#cell=…`, `#head=…`), so that it can be sent to somebody. */
const opens = {};

function setAddress(kind, name) {
  const written = (text) => encodeURIComponent(text).replaceAll("%2F", "/");
  history.replaceState(null, "", kind ? `#${kind}=${written(name)}` : location.href.split("#")[0]);
}

/** Open what the address names, where the page has it. */
function openAddress() {
  const [, kind, written] = /^#(\w+)=(.*)$/.exec(location.hash) || [];
  if (!Object.hasOwn(opens, kind ?? "")) return;
  let name;
  try {
    name = decodeURIComponent(written);
  } catch {
    name = written; // an address that was cut in the middle of a sign
  }
  opens[kind](name);
}
