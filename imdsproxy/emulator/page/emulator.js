// Asks /-/state every second. Text from outside enters as text nodes only.
(() => {
  const SHOWN = 60;
  const BIN = 0.25;
  const KEPT = 5000;
  const AGAIN = 200;
  const ROWS = 40;
  const TROUBLES = [
    ["410 for 20 s", { status: 410, for: 20 }],
    ["410 for 70 s", { status: 410, for: 70 }],
    ["429 for 10 s", { status: 429, for: 10 }],
    ["500 for 20 s", { status: 500, for: 20 }],
    ["500, one in ten", { status: 500, share: 0.1, for: 60 }],
    ["slow: 3 s, for 30 s", { latency: 3, for: 30 }],
    ["hang for 20 s", { hang: true, for: 20 }],
    ["reset for 20 s", { reset: true, for: 20 }],
  ];
  const KINDS = ["Freeze", "Reboot", "Redeploy", "Preempt", "Terminate", "SpotRebalanceRecommendation", "HardwareFailure"];
  const token = document.querySelector("meta[name=page-token]").content;
  let arrivals = [];
  let first = 0; // the index of arrivals[0]
  let next = null;

  const button = (text, act, label) => {
    const node = make("button", { type: "button", ...(label ? { "aria-label": label } : {}) }, text);
    node.addEventListener("click", act);
    return node;
  };

  const ask = async (method, path, body) => {
    const answer = await fetch(path, {
      method, headers: { "X-Emulator-Page": token }, body: body === undefined ? undefined : JSON.stringify(body),
    });
    const document_ = await answer.json();
    if (!answer.ok) throw new Error(document_.error || `status ${answer.status}`);
    return document_;
  };
  const act = async (method, path, body) => {
    try {
      await ask(method, path, body);
      byId("error").hidden = true;
      await refresh();
    } catch (error) {
      put(byId("error"), `✕ ${error.message}`);
      byId("error").hidden = false;
    }
  };

  const isIdentity = (target) => /^\/+metadata\/identity\b/i.test(target);
  // How many of the same limit came within the second that ends with each arrival; a whole second apart is not.
  const count = () => {
    for (const identity of [false, true]) {
      const some = arrivals.filter((each) => isIdentity(each.target) === identity);
      let oldest = 0;
      some.forEach((each, index) => {
        while (each.at - some[oldest].at >= 1) oldest += 1;
        each.within = index - oldest + 1;
        each.limit = identity ? 20 : 5;
      });
    }
  };
  const clockOf = (at, now) => clock(new Date(Date.now() - (now - at) * 1000));

  const chart = (id, identity, limit, now) => {
    const svg = byId(id);
    const height = svg.viewBox.baseVal.height;
    const bins = new Array(SHOWN / BIN).fill(0);
    for (const each of arrivals) {
      const bin = bins.length - 1 - Math.floor((now - each.at) / BIN);
      if (isIdentity(each.target) === identity && bin >= 0 && bin < bins.length) bins[bin] = Math.max(bins[bin], each.within);
    }
    const most = Math.max(...bins);
    const top = Math.max(limit * 1.4, most);
    const width = 600 / bins.length;
    const level = (value) => value / top * (height - 6);
    const bars = bins.map((value, index) => value && draw("rect", {
      class: value > limit ? "over" : "within", x: index * width, y: height - level(value), width: width * 0.9, height: level(value),
    })).filter(Boolean);
    const y = height - level(limit);
    svg.replaceChildren(...bars, draw("line", { class: "limit", x1: 0, x2: 600, y1: y, y2: y, "vector-effect": "non-scaling-stroke" }));
    put(byId(`${id}-top`), `dashed: ${limit} a second; most in the last minute: ${most}`);
    const over = arrivals.filter((each) => isIdentity(each.target) === identity && each.within > limit).length;
    put(byId(`${id}-words`), most
      ? `In the last minute at most ${most} came within one second. ${over ? `${over} of the requests shown came when ${limit} had come already.` : ""}`
      : "None came in the last minute.");
  };

  const verdict = (now) => {
    const worst = arrivals.reduce((found, each) => each.within - each.limit > (found ? found.within - found.limit : 0) ? each : found, null);
    const refused = arrivals.filter((each) => each.status === 429).length;
    const node = byId("verdict");
    node.className = worst ? "state bad" : "state";
    put(node, worst
      ? `✕ ${worst.within} ${worst.limit === 20 ? "identity requests" : "requests"} within one second at ${clockOf(worst.at, now)}. Azure's IMDS answers ${worst.limit}, and 429 to the rest.${refused ? ` ${refused} got 429 here.` : ""}`
      : next ? `✓ Never more than Azure's IMDS answers: ${next} requests so far` : "… No program has asked yet");
    put(document.querySelector("title"), worst ? `✕ ${worst.within} in a second – emulated IMDS` : "Emulated IMDS");
  };

  const latest = (now) => {
    const rows = arrivals.slice(-ROWS).reverse().map((each) => make("tr", {},
      make("td", {}, clockOf(each.at, now)),
      make("td", { class: each.status === null || each.status >= 400 ? "bad" : "" }, each.status === null ? "none" : String(each.status)),
      make("td", { class: each.within > each.limit ? "bad" : "" }, `${each.within} of ${each.limit}`),
      make("td", { class: "target" }, `${each.method} ${each.target}`),
      make("td", {}, each.client || "–")));
    const head = make("tr", {}, ...["time", "status", "in its second", "request", "client"].map((text) => make("th", { scope: "col" }, text)));
    byId("latest").replaceChildren(rows.length ? make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)) : make("p", { class: "soft" }, "None yet."));
  };

  // Items keep their nodes, so that a button keeps the focus while its text changes.
  const list = (id, items, key, words, buttons) => {
    const place = byId(id);
    const known = new Map([...place.children].map((node) => [node.dataset.key, node]));
    for (const item of items) {
      const name = String(key(item));
      let node = known.get(name);
      if (!node) {
        node = make("li", { "data-key": name }, make("span", {}), ...buttons(item));
        place.append(node);
      }
      known.delete(name);
      put(node.firstChild, words(item));
    }
    for (const node of known.values()) node.remove();
  };
  const seconds = (value) => value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
  const trouble = (fault) => {
    const { id, path, left, ...rest } = fault;
    const what = Object.entries(rest).filter(([name]) => name !== "seconds" && name !== "times")
      .map(([name, value]) => value === true ? name : `${name} ${value}`).join(", ");
    const ends = [left.seconds === null ? "" : `${seconds(left.seconds)} left`, left.times === null ? "" : `${left.times} times left`].filter(Boolean);
    return `${what} at ${path}${ends.length ? `: ${ends.join(", ")}` : ""}`;
  };
  const event = (each) => {
    const when = each.Phase === "Started" ? (each.EndsIn === null ? "" : `, ends in ${seconds(each.EndsIn)}`)
      : each.Phase === "Pending" ? `, announced in ${seconds(each.AnnouncedIn)}` : each.StartsIn === null ? "" : `, starts in ${seconds(each.StartsIn)}`;
    return `${each.EventType} of ${each.Resources.join(", ")}: ${each.Phase}${when}`;
  };
  const eventButtons = (each) => {
    const path = `/-/events/${encodeURIComponent(each.EventId)}`;
    return [
      button("Approve", () => act("POST", `${path}/approve`), `Approve ${each.EventType}`),
      button("Cancel", () => act("POST", `${path}/cancel`), `Cancel ${each.EventType}`),
      button("Remove", () => act("DELETE", path), `Remove ${each.EventType}`),
    ];
  };

  const show = (state) => {
    count();
    verdict(state.now);
    chart("general", false, 5, state.now);
    chart("identity", true, 20, state.now);
    latest(state.now);
    list("faults", state.faults, (fault) => fault.id, trouble, (fault) => [button("End", () => act("DELETE", `/-/faults/${fault.id}`), "End this trouble")]);
    list("events", state.events.Events, (each) => each.EventId, event, eventButtons);
    put(byId("incarnation"), `DocumentIncarnation ${state.events.DocumentIncarnation}. ${state.events.Enabled ? "" : "No program has asked for events yet."}`);
  };

  const tell = (text, gone) => { byId("live").className = gone ? "gone" : ""; put(byId("live"), text); };
  const refresh = async () => {
    try {
      if (next === null) next = Math.max(0, (await ask("GET", "/-/state?since=999999999")).next - KEPT);
      // A request that was not answered when it was listed is listed again.
      const open = arrivals.findIndex((each) => each.status === null);
      const since = Math.max(0, open < 0 ? next : Math.max(first + open, next - AGAIN));
      const state = await ask("GET", `/-/state?since=${since}`);
      if (state.next < next) { arrivals = []; first = 0; next = 0; return await refresh(); }
      if (!arrivals.length) first = since;
      arrivals = [...arrivals.slice(0, since - first), ...state.arrivals];
      first += Math.max(0, arrivals.length - KEPT);
      arrivals = arrivals.slice(-KEPT);
      next = state.next;
      show(state);
      tell("● live", false);
    } catch (error) {
      tell(error instanceof TypeError ? "✕ The emulator is gone" : `✕ ${error.message} Reload this page.`, true);
    }
  };

  for (const [text, fault] of TROUBLES) byId("troubles").append(button(text, () => act("POST", "/-/faults", fault)));
  const number = (text, name) => {
    const value = Number(text.trim());
    if (!Number.isFinite(value)) throw new Error(`${name} is a number, not ${text}`);
    return value;
  };
  const optional = (id, name, body) => { const text = byId(id).value; if (text.trim()) body[name] = number(text, id); };
  for (const kind of KINDS) {
    byId("kinds").append(button(kind, () => {
      const body = { EventType: kind };
      optional("notice", "NoticeInSeconds", body);
      optional("duration", "DurationInSeconds", body);
      act("POST", "/-/events", body);
    }));
  }
  byId("trouble").addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    const given = Object.fromEntries(new FormData(submitted.target));
    const needsValue = given.what === "status" || given.what === "latency";
    const body = { path: given.path, [given.what]: needsValue ? given.value : true };
    if (given.seconds.trim()) body.for = given.seconds;
    act("POST", "/-/faults", body);
  });
  byId("recover").addEventListener("click", () => act("DELETE", "/-/faults"));
  byId("reset").addEventListener("click", () => act("POST", "/-/reset"));
  const repeat = async () => { await refresh(); setTimeout(repeat, 1000); };
  repeat();
})();
