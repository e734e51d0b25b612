// The proxy answers no request that a page makes, not even this page's own. So this page makes none: the proxy keeps
// sending figures at the end of the page for as long as it is open. Text from outside enters as text nodes only.
(() => {
  const OUTCOMES = ["hit", "collapsed", "miss", "bypass", "stale", "refused", "error"];
  const STATES = {
    answering: ["good", "✓ IMDS answers"],
    unknown: ["", "… IMDS has not been asked yet"],
    updating: ["", "↻ IMDS is being updated (410)"],
    throttling: ["", "⚠ IMDS throttles this VM (429)"],
    failing: ["bad", "✕ IMDS fails"],
  };
  const LATE = 8000;
  let shownAt = 0;
  let ended = false;
  let latest = null;

  const count = (number) => number.toLocaleString("en");
  const size = (bytes) => bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
  const time = (seconds) => {
    if (seconds === null) return "–";
    const whole = Math.floor(Math.abs(seconds));
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min`;
    return `${Math.floor(whole / 86400)} d ${Math.floor(whole % 86400 / 3600)} h`;
  };
  const percent = (part, all) => all ? `${(100 * part / all).toFixed(part === all ? 0 : 1)} %` : "–";
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

  // A cell is a text, or a pair of a text and a class.
  const table = (id, heads, rows, none, caption) => {
    const place = byId(id);
    if (!rows.length) {
      place.replaceChildren(make("p", { class: "none" }, none));
      return;
    }
    const kind = (cell, column) => [Array.isArray(cell) ? cell[1] : "", heads[column].endsWith("#") ? "number" : ""].join(" ").trim();
    const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col", class: text.endsWith("#") ? "number" : "" }, text.replace("#", ""))));
    const body = rows.map((cells) => make("tr", {}, ...cells.map((cell, column) => {
      const text = Array.isArray(cell) ? cell[0] : cell;
      const name = column === 0 ? "th" : "td";
      return make(name, column === 0 ? { scope: "row" } : { class: kind(cell, column) }, text);
    })));
    const made = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
    if (caption) made.prepend(make("caption", {}, caption));
    const left = place.scrollLeft;
    place.replaceChildren(made);
    place.scrollLeft = left;
  };

  const tiles = (rows) => {
    const list = byId("tiles");
    while (list.children.length < rows.length) {
      list.append(make("div", {}, make("dt"), make("dd", { class: "figure" }), make("dd", { class: "more" })));
    }
    rows.forEach((texts, index) => texts.forEach((text, place) => put(list.children[index].children[place], text)));
  };

  const legend = (id, items) => byId(id).replaceChildren(...items.map(([name, kind, number]) =>
    make("li", {}, draw("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, draw("rect", { width: 10, height: 10, rx: 2, class: kind })), `${name} ${number}`)));

  // Bars of stacked parts; each row maps a kind to its height in the chart's own unit.
  const bars = (id, rows, kinds, top, height, words) => {
    const chart = byId(id);
    const width = 600 / rows.length;
    const drawn = [draw("line", { class: "grid", x1: 0, x2: 600, y1: height / 2, y2: height / 2, "vector-effect": "non-scaling-stroke" })];
    rows.forEach((row, index) => {
      let below = height;
      const group = draw("g", {}, draw("title", {}));
      group.firstChild.textContent = words(row, index);
      for (const kind of kinds) {
        const part = top ? (row[kind] || 0) / top * (height - 6) : 0;
        if (!part) continue;
        below -= part;
        group.append(draw("rect", { class: kind, x: index * width + 0.8, y: below, width: width - 1.6, height: part }));
      }
      drawn.push(group);
    });
    chart.replaceChildren(...drawn);
    return chart;
  };

  const ago = (rows, index, period) => {
    const seconds = (rows.length - 1 - index) * period;
    return seconds ? `${time(seconds)} ago` : "now";
  };

  const charts = (status) => {
    const { period, outcomes, budget } = status.history;
    const most = Math.max(1, ...outcomes.map((row) => sum(Object.values(row))));
    const totals = Object.fromEntries(OUTCOMES.map((name) => [name, sum(outcomes.map((row) => row[name] || 0))]));
    const told = (row) => OUTCOMES.filter((name) => row[name]).map((name) => `${name} ${count(row[name])}`).join(", ") || "nothing";
    bars("requests-chart", outcomes, OUTCOMES, most, 150, (row, index) => `${ago(outcomes, index, period)}: ${told(row)}`);
    put(byId("requests-top"), `${count(most)} in ${period} s`);
    legend("requests-legend", OUTCOMES.map((name) => [name, name, count(totals[name])]));
    put(byId("requests-words"), `Requests by outcome in the last 15 minutes: ${told(totals)}.`);

    const rate = sum(status.budget.map((each) => each.permits / each.window));
    const most_sent = rate * period;
    const sent = sum(budget.map((row) => row.sent || 0));
    const refused = sum(budget.map((row) => row.refused || 0));
    const peak = Math.max(0, ...budget.map((row) => row.sent || 0));
    const capped = budget.map((row) => ({ sent: Math.min(row.sent || 0, most_sent), refused: Math.min(row.refused || 0, Math.max(0, most_sent * 1.3 - (row.sent || 0))), all: row }));
    const chart = bars("budget-chart", capped, ["sent", "refused"], most_sent * 1.3, 110, (row, index) =>
      `${ago(budget, index, period)}: ${count(row.all.sent || 0)} sent, ${count(row.all.refused || 0)} refused`);
    const line = 110 - 104 / 1.3;
    chart.append(draw("line", { class: "limit", x1: 0, x2: 600, y1: line, y2: line, "vector-effect": "non-scaling-stroke" }));
    put(byId("budget-top"), `dashed: ${Number(rate.toFixed(1))} a second, the whole budget; busiest ${period} s: ${percent(peak, most_sent)}`);
    legend("budget-legend", [
      ["sent to IMDS", "sent", count(sent)],
      ["refused (no permit in time)", "refused", count(refused)],
    ]);
    put(byId("budget-words"), `In the last 15 minutes ${count(sent)} requests were sent to IMDS and ${count(refused)} were refused, because no permit was free in time. The busiest ${period} seconds used ${percent(peak, most_sent)} of the budget.`);

    if (!byId("minutes").closest("details").open) return;
    const per_minute = Math.max(1, Math.round(60 / period));
    const minutes = [];
    for (let index = outcomes.length; index > 0; index -= per_minute) {
      const some = (rows, name) => sum(rows.slice(Math.max(0, index - per_minute), index).map((row) => row[name] || 0));
      minutes.push([`${time((outcomes.length - index) * period)} ago`, ...OUTCOMES.map((name) => count(some(outcomes, name))), count(some(budget, "sent"))]);
    }
    table("minutes", ["minute", ...OUTCOMES.map((name) => `${name}#`), "sent to IMDS#"], minutes, "");
  };

  const failure = (failed) => failed ? [`${time(failed.ago)} ago: ${failed.words}`, "bad"] : "";
  const details = (status) => {
    const { imds } = status;
    const parts = [];
    parts.push(imds.last_success === null ? "no success yet" : `last success ${time(imds.last_success)} ago`);
    if (imds.last_failure) parts.push(`last failure ${time(imds.last_failure.ago)} ago: ${imds.last_failure.words}`);
    if (!status.proxy.ready) parts.unshift(`not ready: ${status.proxy.obstacle}`);
    return parts.join(" · ");
  };

  const show = (status) => {
    const { proxy, imds, requests, cache } = status;
    const [kind, words] = STATES[imds.state] || ["", imds.state];
    put(byId("process"), `${proxy.version} · process ${proxy.pid} · up ${time(proxy.uptime)} · in front of ${proxy.upstream}`);
    byId("imds").className = `state ${kind}`;
    put(byId("imds"), words);
    put(byId("imds-detail"), `for ${time(imds.since)} · ${details(status)}`);
    put(document.querySelector("title"), imds.state === "answering" ? "imdsproxy" : `${words} – imdsproxy`);

    const outcome = requests.by_outcome;
    const from_cache = (outcome.hit || 0) + (outcome.stale || 0);
    const free = sum(status.budget.map((each) => each.free));
    const permits = sum(status.budget.map((each) => each.permits));
    const waiting = sum(status.budget.map((each) => each.waiting));
    const refused = sum(status.budget.map((each) => each.refused));
    tiles([
      ["Calls saved", count(requests.saved), `${count(requests.sent_to_imds)} went to IMDS`],
      ["From the cache", percent(from_cache, requests.answered), `of ${count(requests.answered)} requests`],
      ["Permits free", `${free} of ${permits}`, waiting ? `${waiting} wait, ${time(Math.max(...status.budget.map((each) => each.estimated_wait)))}` : "none waits"],
      ["Refused", count(refused), "no permit in time"],
      ["Cache", size(cache.bytes), `${percent(cache.bytes, cache.max_bytes)} of ${size(cache.max_bytes)}, ${count(cache.entries)} entries`],
      ["Tokens", count(status.tokens.filter((each) => each.expires !== null).length), status.tokens.some((each) => each.failure) ? "a renewal fails" : "none fails"],
    ]);
    charts(status);

    table("permits", ["budget", "free#", "waiting#", "wait#", "refused#"], status.budget.map((each) =>
      [each.name, `${each.free} of ${each.permits}`, count(each.waiting), time(each.estimated_wait), count(each.refused)]), "",
      proxy.chained ? "The imdsproxy upstream keeps the budget; these permits are not used." : "");
    table("hour", ["answer", "requests#"], Object.entries(imds.last_hour).map(([word, number]) => [word, count(number)]), "Nothing was sent to IMDS.");
    table("clients", ["client", "requests to IMDS#", "requests#", "refused#"], status.clients.map((each) => [each.name, count(each.sent), count(each.requests), count(each.refused)]), "No client has caused a request to IMDS.");
    const { events } = status;
    table("events", ["type", "pending#"], events ? Object.entries(events.pending).filter(([, number]) => number).map(([name, number]) => [name, [count(number), "warn"]]) : [],
      events ? `None is pending, as of ${time(events.ago)} ago.` : "No client has asked for them.");
    table("tokens", ["audience", "identity", "expires in#", "renewed in#", "last failure"], status.tokens.map((each) => [
      each.audience, each.identity, each.expires === null ? ["not cached", "bad"] : time(each.expires),
      each.renewal === null ? "–" : each.renewal ? time(each.renewal) : "at the next request", failure(each.failure),
    ]), "No token is cached.");
    put(byId("cache-words"), `${count(cache.entries)} entries in ${size(cache.bytes)} of ${size(cache.max_bytes)}; ${count(cache.evictions)} evicted because the cache was full.` +
      (cache.listed.length < cache.entries ? ` The ${cache.listed.length} with the most hits:` : ""));
    table("cache", ["path", "api-version", "endpoint", "hits#", "age#", "fresh for#", "usable for#", "size#"], cache.listed.map((each) => [
      each.path, each.api_version || "–", each.status === 200 ? each.endpoint : `${each.endpoint}, ${each.status}`, count(each.hits), time(each.age),
      each.fresh > 0 ? time(each.fresh) : ["stale", "warn"], time(each.usable), size(each.bytes),
    ]), "The cache is empty.");
    table("listeners", ["address", "serves"], proxy.listeners.map((each) => [each.address, each.admin ? "/-/ only" : "metadata and /-/"]), "Another server listens for this proxy.", "Listeners");
    table("settings", ["setting", "value", "from"], proxy.settings.map((each) => [each.name, each.value, each.source]), "Every setting has its default.", "Settings that differ from their defaults");
    byId("figures").hidden = false;
    shownAt = Date.now();
  };

  const tell = () => {
    const live = byId("live");
    if (ended) return;
    const late = shownAt && Date.now() - shownAt > LATE;
    live.className = late ? "late" : "";
    put(live, late ? `No figures since ${clock(new Date(shownAt))}` : "● live");
  };
  const end = () => {
    ended = true;
    const whole = document.documentElement.dataset.once === "true";
    const live = byId("live");
    live.className = whole ? "late" : "gone";
    put(live, whole ? `As of ${clock(new Date(shownAt))}; reload this page for newer figures`
      : `✕ The proxy is gone since ${clock(new Date())}. Its last figures are below; reload this page once it runs again.`);
    if (!whole) put(document.querySelector("title"), "✕ gone – imdsproxy");
  };

  // Figures are complete once the element that closes them is there.
  const take = () => {
    const closing = document.querySelectorAll("wbr");
    if (!closing.length) return;
    const figures = closing[closing.length - 1].previousElementSibling;
    const text = figures.textContent;
    document.querySelectorAll("wbr, script[type='application/json']").forEach((node) => {
      if (node.compareDocumentPosition(figures) & Node.DOCUMENT_POSITION_FOLLOWING || node === figures || node.matches("wbr")) node.remove();
    });
    latest = JSON.parse(text);
    show(latest);
    tell();
  };
  new MutationObserver(take).observe(document.body, { childList: true });
  document.addEventListener("DOMContentLoaded", () => { take(); end(); });
  byId("minutes").closest("details").addEventListener("toggle", () => { if (latest) charts(latest); });
  setInterval(tell, 1000);
})();
