// The page asks what anybody can ask: see GET /openapi.json. Names of classes come from people,
// so all text is set as text.
"use strict";

const $ = (id) => document.getElementById(id);
const token = keepToken();
let known = null; // the answer of GET /classes
let samples = []; // what the answers are of: {file, url} or {vector}
let answers = []; // the predictions of them

function keepToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname); // out of sight, and out of bookmarks
  }
  return sessionStorage.getItem("token");
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) {
    made.textContent = text;
    if (["label", "name", "before"].includes(className)) made.title = text; // they may be cut off
  }
  return made;
}

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const reply = await fetch(path, { ...options, headers });
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.message);
  return body;
}

function asJson(content) {
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(content) };
}

function request(fields, some = samples) {
  if (known.takes === "features") {
    return asJson({ ...fields, features: some.map((sample) => sample.vector) });
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  for (const sample of some) form.append("files", sample.file, sample.file.name);
  return { method: "POST", body: form };
}

// One thing at a time, and what goes wrong is said.
let working = false;

async function work(what, action) {
  if (working) return;
  working = true;
  document.body.setAttribute("aria-busy", "true");
  say(what);
  try {
    say((await action()) || "");
  } catch (error) {
    say(error.message, true);
  } finally {
    working = false;
    document.body.removeAttribute("aria-busy");
  }
}

// -- what is known ---------------------------------------------------------------------------

async function refresh() {
  known = await ask("classes");
  showClasses();
  await showChanges();
}

function showClasses() {
  document.title = `${known.name} · protocl`;
  $("title").textContent = known.name;
  const counted = known.classes.filter((each) => each.samples !== null);
  const total = counted.reduce((sum, each) => sum + each.samples, 0);
  $("summary").textContent =
    `${many(known.classes.length, "class", "classes")}` +
    (counted.length ? `, ${many(total, "sample", "samples")}` : "");
  const pictures = known.takes === "pictures";
  $("drop").hidden = !pictures;
  $("vectors-form").hidden = pictures;
  $("width").textContent = known.width ?? "";
  $("filter").hidden = known.classes.length < 13;
  $("teach").hidden = !(token && known.learns);
  $("unknown-note").textContent = known.unknown_note && `What is unknown by ${known.unknown_by}: ${known.unknown_note}`;
  $("no-classes").hidden = known.classes.length > 0;
  $("no-token").hidden = Boolean(token) || !known.learns;
  $("names").replaceChildren(...known.classes.map((each) => new Option(each.label)));
  listClasses();
}

function listClasses() {
  const wanted = $("filter").value.toLowerCase();
  const found = known.classes.filter((each) => String(each.label).toLowerCase().includes(wanted));
  $("classes").replaceChildren(...found.map(classRow));
}

function classRow(each) {
  const row = element("li");
  row.append(element("span", "label", String(each.label)));
  row.append(element("span", "count", each.samples ?? ""));
  if (token && known.learns && known.forgets_classes) {
    const button = element("button", "quiet", "Forget");
    button.type = "button";
    button.setAttribute("aria-label", `Forget ${each.label}`);
    button.onclick = () => askToForget(each.label);
    row.append(button);
  }
  return row;
}

async function showChanges() {
  const { changes } = await ask("changes");
  $("changes-section").hidden = !changes.length;
  $("changes").replaceChildren(...changes.map(changeRow));
}

function changeRow(change) {
  const row = element("li");
  const what = change.kind === "teach" ? "taught" : "forgot";
  row.append(element("span", "label", `${what} ${change.label}`));
  row.append(element("span", "count", `${Math.ceil(change.seconds_left / 60)} min`));
  if (token) {
    const button = element("button", "quiet", "Undo");
    button.type = "button";
    button.setAttribute("aria-label", `Undo: ${what} ${change.label}`);
    button.onclick = () => undo(change);
    row.append(button);
  }
  return row;
}

// -- asking ----------------------------------------------------------------------------------

function take(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) return say("That is no picture.", true);
  for (const sample of samples) URL.revokeObjectURL(sample.url);
  samples = pictures.map((file) => ({ file, url: URL.createObjectURL(file) }));
  answers = [];
  predict("Looking…");
}

function takeVectors(event) {
  event.preventDefault();
  const lines = $("vectors").value.split("\n").filter((line) => line.trim());
  samples = lines.map((line) => ({ vector: line.trim().split(/[\s,;]+/).map(Number) }));
  answers = [];
  predict("Computing…");
}

function predict(what) {
  return work(what, async () => {
    await answer([]);
    $("teach-button").textContent = `Teach ${samples.length === 1 ? "it" : `all ${samples.length}`}`;
    $("teach-label").textContent = samples.length === 1 ? "It shows" : "They show";
  });
}

async function answer(before) {
  $("results-section").hidden = false;
  if (!known.classes.length) {
    answers = [];
    $("results").replaceChildren(...samples.map((_, n) => answerRow(n, before)));
    return;
  }
  answers = (await ask("predict", request({ top: 5 }))).predictions;
  $("results").replaceChildren(...samples.map((_, n) => answerRow(n, before)));
}

function answerRow(n, before) {
  const row = element("li", "answer");
  const { file, url } = samples[n];
  if (url) {
    const picture = element("img", "picture");
    picture.src = url;
    picture.alt = "";
    row.append(picture);
  } else {
    row.classList.add("no-picture");
  }
  const found = answers[n];
  const body = element("div");
  const head = element("div", "row");
  head.append(element("span", "name", file ? file.name : `vector ${n + 1}`));
  body.append(head);
  row.append(body);
  if (!found) return row;
  if (found.is_unknown) head.append(element("span", "mark", mark(found)));
  body.append(...found.best.map((guess, rank) => guessRow(guess, rank, found.best)));
  if (before[n]) body.append(element("p", "before", `before: ${inWords(before[n])}`));
  if (found.nearest.length) {
    head.append(whyButton(n, body));
    row.append(neighbours(found.nearest));
  }
  return row;
}

const mark = ({ unknown, unknown_by }) =>
  unknown_by ? `unknown by ${unknown_by.score}` : `unknown ${percent(unknown)}`;

function guessRow(guess, rank, best) {
  const row = element("div", rank ? "guess" : "guess first");
  row.append(element("span", "label", String(guess.label)));
  const bar = element("span", "bar");
  const fill = element("i");
  fill.style.width = `${100 * share(guess, best)}%`;
  bar.append(fill);
  row.append(bar, element("span", "value", worth(guess)));
  return row;
}

// Of scores, which have no scale, the best is a full bar and the last shown an empty one.
function share(guess, best) {
  if (guess.probability !== null) return guess.probability;
  const low = best[best.length - 1].score;
  return best[0].score > low ? (guess.score - low) / (best[0].score - low) : 1;
}

function neighbours(nearest) {
  const line = element("div", "neighbours");
  line.append(element("span", "", "nearest prototypes"));
  for (const each of nearest) {
    const one = element("span", "neighbour");
    if (each.thumbnail) {
      const picture = element("img");
      picture.src = each.thumbnail;
      picture.alt = "";
      one.append(picture);
    }
    one.append(element("span", "label", String(each.label)));
    one.append(element("span", "", short(each.distance)));
    line.append(one);
  }
  return line;
}

// -- why ---------------------------------------------------------------------------------------

function whyButton(n, body) {
  const button = element("button", "quiet", "Why?");
  button.type = "button";
  button.setAttribute("aria-label", `Why ${answers[n].label}?`);
  button.onclick = () =>
    work("Asking why…", async () => {
      const { explanations } = await ask("explain", request({ top: 3 }, [samples[n]]));
      body.querySelector(".why")?.remove();
      body.append(reasons(explanations[0]));
    });
  return button;
}

function reasons(why) {
  const list = element("ul", "why");
  for (const each of why.prototypes) {
    const share = each.share === null ? "" : `${percent(each.share)} of the decision, `;
    const behind = each.behind ? `, ${short(each.behind)} behind` : "";
    const mean = `${many(each.samples, "sample", "samples")} at distance ${short(each.distance)}`;
    list.append(element("li", "", `${each.label}: ${share}prototype of ${mean}${behind}`));
  }
  if (why.total !== null) {
    const parts = `${short(why.aleatoric)} because classes overlap, ${short(why.epistemic)} for want of samples`;
    list.append(element("li", "", `uncertain by ${short(why.total)} nats: ${parts}`));
  }
  if (why.unknown !== null) list.append(element("li", "", howUnknown(why)));
  return list;
}

function howUnknown({ unknown, unknown_by }) {
  if (!unknown_by) return `${percent(unknown)} unknown`;
  const word = unknown_by.is_unknown ? "unknown" : "known";
  return `${word} by ${unknown_by.score}: ${percent(unknown)} of known samples score higher`;
}

const many = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const percent = (chance) => `${(100 * chance).toFixed(chance < 0.005 || (chance > 0.99 && chance < 0.9995) ? 1 : 0)} %`;
const short = (number) => Number(number.toPrecision(3)).toString();
const worth = (guess) => (guess.probability === null ? short(guess.score) : percent(guess.probability));
const inWords = (found) => `${found.best[0].label} ${worth(found.best[0])}`;

// -- changing --------------------------------------------------------------------------------

function teach(event) {
  event.preventDefault();
  const label = $("name").value;
  work("Teaching…", async () => {
    await ask("teach", request({ class: label }));
    await seeAgain();
    $("name").value = "";
    return `Taught ${label}.`;
  });
}

function askToForget(label) {
  $("forget-name").textContent = label;
  $("forget").returnValue = "";
  $("forget").showModal();
  $("forget").onclose = () => {
    if ($("forget").returnValue) forget(label, $("forget").returnValue === "now");
  };
}

function forget(label, now) {
  work("Forgetting…", async () => {
    await ask("forget", asJson({ class: label, now }));
    await seeAgain();
    return now ? `Forgot ${label} for good.` : `Forgot ${label}.`;
  });
}

function undo(change) {
  work("Undoing…", async () => {
    await ask("undo", asJson({ change: change.id }));
    await seeAgain();
    return `Undone: ${change.kind === "teach" ? "taught" : "forgot"} ${change.label}.`;
  });
}

async function seeAgain() {
  const before = answers;
  await refresh();
  if (samples.length) await answer(before);
}

function clear() {
  samples = [];
  answers = [];
  $("results-section").hidden = true;
  $("files").value = "";
  say("");
  (known.takes === "pictures" ? $("files") : $("vectors")).focus();
}

// -- wiring ----------------------------------------------------------------------------------

$("files").onchange = (event) => event.target.files.length && take(event.target.files);
$("vectors-form").onsubmit = takeVectors;
$("teach").onsubmit = teach;
$("clear").onclick = clear;
$("filter").oninput = listClasses;

addEventListener("paste", (event) => {
  if (known?.takes === "pictures" && event.clipboardData.files.length) take(event.clipboardData.files);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (known?.takes === "pictures") take(event.dataTransfer.files);
});
setInterval(() => known && !document.hidden && !working && showChanges().catch((error) => say(error.message, true)), 30_000);

work("", refresh);
