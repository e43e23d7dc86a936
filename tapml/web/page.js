// The hub's page: makes this browser a device at once, and shows it; who has the hub's own token sees all devices besides.
//
// It is opened as "/", where a cookie says that this is the owner's browser (address.js), or as /?pair=CODE. After pairing the hub is asked for a cookie for
// this device, and the address becomes "/?device". The name that the user gave is kept in localStorage; the one that the hub made of it for this tab, one of several perhaps, in
// sessionStorage, so that a tab that is loaded again is the same device.

import { reasonAgainst } from "./adapter.js";
import { Connection } from "./connection.js";
import { byId, setClass, setText } from "./dom.js";
import { Keeper } from "./keeper.js";
import { DeviceList } from "./list.js";
import { Pairing } from "./pairing.js";
import { Panel } from "./panel.js";
import { VERSION, control } from "./wire.js";
import { browser, cleanName, firstName } from "./words.js";

const NAME_KEY = "tapml-name";
const COOKIE_MILLISECONDS = 2000;

const query = new URLSearchParams(location.search);
const pair = query.get("pair") ?? "";
const paired = pair !== "" || query.has("device");
const what = browser(navigator);
const keeper = new Keeper(settings(), drawMine, stayPaired);
const panel = new Panel(byId("mine"), {
  start: () => keeper.start(),
  stop: () => {
    keeper.stop();
    drawMine(null);
  },
  rename: text => {
    const name = cleanName(text) || firstName(what);
    remember("localStorage", name);
    remember("sessionStorage", name);
    keeper.rename(name);
    return name;
  },
});
let watching = null;
let mine = null;

function settings() {
  const cores = navigator.hardwareConcurrency ? `, ${navigator.hardwareConcurrency} processors` : "";
  const memory = navigator.deviceMemory ? `, ${navigator.deviceMemory} GB or more` : "";
  const text = `${what.product} on ${what.system}`;
  return {
    token: "", pair, path: paired ? "/wire?device" : "/wire",
    name: remembered("sessionStorage") || remembered("localStorage") || firstName(what),
    system: `${text}${cores}${memory}`, browser: text,
  };
}

// The worker got a token for the code, which is void now. Until the hub is reached once more, loading the page again would cost the pairing.
async function stayPaired(token) {
  try {
    const { ok } = await fetch("/session", { headers: { Authorization: `Bearer ${token}` } });
    if (ok) history.replaceState(null, "", "/?device");
  } catch {
    setTimeout(() => stayPaired(token), COOKIE_MILLISECONDS);
  }
}

function remembered(where) {
  try {
    return window[where].getItem(NAME_KEY);
  } catch {
    return "";  // storage is closed to this page
  }
}

function remember(where, name) {
  try {
    if (window[where].getItem(NAME_KEY) !== name) window[where].setItem(NAME_KEY, name);
  } catch {
    return;  // the name holds until the page is loaded again
  }
}

function drawMine(state) {
  mine = keeper.running ? state : null;
  if (mine?.connection === "connected") remember("sessionStorage", mine.name);
  panel.draw(mine, { running: keeper.running, failures: keeper.failures, failure: keeper.failure, screen: keeper.screen, why: reasonAgainst(window) });
  list?.setOwn(mine?.connection === "connected" ? mine.name : "");
  drawLink();
}

// One word for how it stands with the hub: of the list where there is one, else of the device.
function drawLink() {
  const state = watching?.state ?? mine?.connection ?? "stopped";
  const words = { connected: "Connected", connecting: "Connecting…", refused: "Refused", stopped: "Not connected" };
  setText(byId("link"), words[state]);
  setClass(byId("link"), `pill pill-${state}`);
  byId("link").title = watching?.why ?? mine?.why ?? "";
}

let list = null;

// A paired device sees no list.
function watch() {
  const pairing = new Pairing(byId("pairing"), () => watching.send(control("pair")));
  list = new DeviceList(byId("all"), { addPhone: () => pairing.open() });
  watching = new Connection(() => ({ version: VERSION, role: "watch", token: "" }), {
    welcome: () => {
      byId("all").hidden = false;
      pairing.again();
    },
    message: ({ name, arguments: [first] }) => {
      if (name === "devices") {
        list.draw(first);
        pairing.devices(first, mine?.name);
      } else if (name === "pairing") pairing.show(first);
    },
    changed: () => {
      list.setLink(watching.state, watching.why);
      pairing.setLink(watching.state, watching.why);
      drawLink();
    },
  });
  for (const event of ["online", "pageshow"]) addEventListener(event, () => watching.nudge());
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") watching.nudge(); });
  watching.start();
}

// Weights that were remembered need not be sent again. Firefox would ask its user; the others decide by themselves.
if (!/Firefox\//.test(navigator.userAgent)) navigator.storage?.persist?.().catch(() => null);
if (!paired) watch();
keeper.start();
drawMine(null);
