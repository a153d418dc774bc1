// The gallery: filter, sort, show a page of cards, enlarge one. Everything that a user named reaches the page as text.
"use strict";
(() => {
  const PAGE = 60;
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const [find, classes, masks, sort, order, below, view, worst] = [
    "find", "class", "masks", "sort", "order", "below", "view", "worst",
  ].map(byId);
  const [cards, viewer, help] = ["cards", "viewer", "help"].map(byId);
  const columns = data.truth ? [...data.sets, "ground truth"] : data.sets;
  const SHORT = { iou: "IoU", quality: "quality", confidence: "conf", box_iou: "box", agreement: "agree", share: "share" };

  let shown = []; // entries that pass the filter, sorted: {image, items, value}
  let page = 0;
  let current = -1; // position in `shown` of the card in the viewer

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // ------------------------------------------------------------------ what there is
  function picture(name) {
    if (data.folder) return `${data.folder}/${name}.jpg`;
    const held = byId(name);
    return held ? `data:image/jpeg;base64,${held.textContent}` : "";
  }

  function labelsOf(item) {
    const labels = data.labels[item];
    return (Array.isArray(labels) ? labels : [labels]).map((label) => data.classes[label]);
  }

  function valueOf(item, key, set) {
    const column = data.values[key];
    return Array.isArray(column[0]) ? column[set][item] : column[item];
  }

  function option(value, text) {
    const node = element("option", "", text);
    node.value = value;
    return node;
  }

  function fillSelects() {
    classes.append(option("", "all"));
    const present = new Set(data.labels.flat());
    data.classes.forEach((name, index) => present.has(index) && classes.append(option(index, name)));
    const count = (test) => data.suspect.filter(test).length.toLocaleString("en");
    masks.append(option("", "all"), option("any", `suspicious (${count((found) => found.length)})`));
    data.suspicions.forEach((name, number) => {
      masks.append(option(number, `${name} (${count((found) => found.includes(number))})`));
    });
    for (const measure of data.measures) {
      if (!measure.perSet) sort.append(option(`${measure.key}:0`, measure.label));
      else {
        data.sets.forEach((name, set) => {
          if (measure.key === "agreement" && set === 0) return;
          sort.append(option(`${measure.key}:${set}`, data.sets.length > 1 ? `${measure.label}, ${name}` : measure.label));
        });
      }
    }
    sort.append(option("", "file order"));
    sort.value = "";
  }

  // Between all images as the file has them, and the worst masks first.
  const worstFirst = () => sort.selectedIndex === 0 && sort.value !== "" && order.value === "1" && view.selectedIndex === view.options.length - 1;

  function switchWorst() {
    const on = !worstFirst();
    sort.selectedIndex = on ? 0 : sort.options.length - 1;
    order.value = "1";
    view.selectedIndex = on ? view.options.length - 1 : 0;
    update();
  }

  // ------------------------------------------------------------------ filter and sort
  function matches(item, words) {
    if (classes.value !== "" && ![data.labels[item]].flat().includes(Number(classes.value))) return false;
    const suspect = data.suspect[item];
    if (masks.value === "any" ? !suspect.length : masks.value !== "" && !suspect.includes(Number(masks.value))) return false;
    if (!words.length) return true;
    const text = [data.files[data.image[item]], data.ids[item] || "", ...labelsOf(item)].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  function update() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [key, set] = sort.value.split(":");
    const direction = Number(order.value);
    const lookup = (item) => (key ? valueOf(item, key, Number(set)) : null);
    const limit = key && below.value !== "" ? Number(below.value) : Infinity;
    const worse = (one, two) => two === null || (one !== null && direction * (one - two) < 0);
    shown = [];
    const groups = new Map();
    for (let item = 0; item < data.image.length; item++) {
      if (!matches(item, words)) continue;
      const value = lookup(item);
      if (limit < Infinity && !(value !== null && value < limit)) continue;
      const image = data.image[item];
      const group = view.value === "images" ? groups.get(image) : undefined;
      if (group) {
        group.items.push(item);
        if (worse(value, group.value)) group.value = value; // an image is as bad as its worst object
      } else {
        const entry = { image, items: [item], value };
        groups.set(image, entry);
        shown.push(entry);
      }
    }
    // What has no value comes last in either order; sort() keeps equals in file order.
    if (key) {
      shown.sort((a, b) => {
        if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
        return direction * (a.value - b.value);
      });
    }
    page = 0;
    worst.setAttribute("aria-pressed", worstFirst());
    draw();
  }

  // ------------------------------------------------------------------ cards
  const pages = () => Math.max(Math.ceil(shown.length / PAGE), 1);
  const showsImages = () => view.value === "images";

  function numbers(item, set) {
    const parts = data.measures.filter((m) => m.perSet && valueOf(item, m.key, set) !== null);
    const line = element("span", "numbers");
    for (const measure of parts) {
      const part = element("span", "", `${SHORT[measure.key]}\u00a0`);
      part.append(element("b", "", valueOf(item, measure.key, set).toFixed(2)));
      line.append(part);
    }
    if (data.areas[set][item] === 0) line.append(element("span", "", "empty"));
    if (data.areas[set][item] === null) line.append(element("span", "", "no mask"));
    return line;
  }

  function tile(name, source, alt, number) {
    const node = element("span", "tile");
    const image = element("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = alt;
    image.src = source;
    node.append(image);
    if (name) {
      const label = element("span", "name");
      if (data.sets.length > 1 && number < data.sets.length) label.append(element("span", `chip bar-${number % 4}`));
      label.append(name);
      node.append(label);
    }
    return node;
  }

  function titleOf(entry) {
    if (!showsImages()) return labelsOf(entry.items[0])[0];
    if (data.semantic) return labelsOf(entry.items[0]).join(", ") || "nothing";
    return `${entry.items.length} object${entry.items.length > 1 ? "s" : ""}`;
  }

  // Of a label map each class with the colour that it is drawn in.
  function titleLine(entry) {
    const line = element("span", "class");
    line.title = titleOf(entry);
    const labels = data.semantic ? data.labels[entry.items[0]] : [];
    if (!labels.length) line.append(titleOf(entry));
    labels.forEach((label, place) => {
      const swatch = element("span", "chip swatch");
      swatch.style.background = data.colors[label];
      line.append(place ? ", " : "", swatch, data.classes[label]);
    });
    return line;
  }

  function valueText(entry) {
    const chosen = sort.selectedOptions[0];
    return sort.value && entry.value !== null ? `${chosen.textContent} ${format(entry.value, sort.value)}` : "";
  }

  const format = (value, key) => (key.startsWith("size") ? `${Math.round(value)} px` : value.toFixed(2));

  function card(entry) {
    const item = entry.items[0];
    const button = element("button", "card");
    button.type = "button";
    button.tabIndex = -1;
    const file = data.files[entry.image];
    button.setAttribute("aria-label", [titleOf(entry), file, valueText(entry)].filter(Boolean).join(", "));
    const tiles = element("span", "tiles");
    columns.forEach((name, column) => {
      const source = showsImages() ? `images/${entry.image}-${column + 1}` : `objects/${item}-${column}`;
      const one = tile(columns.length > 1 ? name : "", picture(source), "", column);
      if (column < data.sets.length && (!showsImages() || data.semantic)) one.append(numbers(item, column));
      tiles.append(one);
    });
    const head = element("span", "head");
    head.append(titleLine(entry));
    const base = element("span", "file", file.split("/").pop());
    base.title = file;
    head.append(base);
    const text = valueText(entry);
    if (text && showsImages() && !data.semantic) {
      const extreme = Number(order.value) > 0 ? "lowest" : "highest";
      head.append(element("span", "numbers", `${extreme} ${text.startsWith("IoU") ? text : text[0].toLowerCase() + text.slice(1)}`));
    }
    button.append(tiles, head);
    const row = element("li");
    row.append(button);
    return row;
  }

  function draw() {
    const list = document.createDocumentFragment();
    shown.slice(page * PAGE, (page + 1) * PAGE).forEach((entry) => list.append(card(entry)));
    if (!shown.length) list.append(element("li", "nothing", "Nothing passes the filter."));
    cards.className = showsImages() ? "images" : "objects";
    cards.style.setProperty("--tiles", Math.min(columns.length, 4));
    cards.replaceChildren(list);
    const first = cards.querySelector("button");
    if (first) first.tabIndex = 0;
    const total = showsImages() ? data.files.length : data.image.length;
    const what = showsImages() ? "images" : "objects";
    byId("status").textContent = `${shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} ${what}`;
    byId("page").textContent = `Page ${page + 1} of ${pages()}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page >= pages() - 1;
  }

  function turn(step, focusLast) {
    const target = page + step;
    if (target < 0 || target >= pages()) return;
    page = target;
    draw();
    byId("gallery").scrollIntoView();
    const buttons = cards.querySelectorAll("button");
    focusCard(buttons[focusLast ? buttons.length - 1 : 0]);
  }

  // ------------------------------------------------------------------ one card enlarged
  function detailTable(items) {
    const table = element("table");
    const head = element("tr");
    ["", ...data.sets].forEach((name) => {
      const cell = element("th", "", name);
      cell.scope = "col";
      head.append(cell);
    });
    table.append(head);
    for (const item of items) {
      for (const measure of data.measures.filter((m) => m.perSet)) {
        addRow(table, measure.label, data.sets.map((_, set) => valueOf(item, measure.key, set)), (v) => v.toFixed(3));
      }
      addRow(table, data.semantic ? "Labelled, pixels" : "Mask, pixels", data.sets.map((_, set) => data.areas[set][item]), String);
    }
    return table;
  }

  function addRow(table, label, values, text) {
    const row = element("tr");
    const cell = element("th", "", label);
    cell.scope = "row";
    row.append(cell, ...values.map((value) => element("td", "", value === null ? "–" : text(value))));
    table.append(row);
  }

  function open(position) {
    if (position < 0 || position >= shown.length) return;
    current = position;
    const entry = shown[position];
    const file = data.files[entry.image];
    byId("viewer-title").textContent = `${titleOf(entry)} · ${file} · ${position + 1} of ${shown.length}`;
    const body = byId("viewer-body");
    body.replaceChildren();
    if (!showsImages()) {
      const item = entry.items[0];
      const crops = element("div", "tiles");
      columns.forEach((name, column) => {
        const alt = `${titleOf(entry)} in ${file}, mask of ${name}`;
        crops.append(tile(name, picture(`objects/${item}-${column}`), alt, column));
      });
      body.append(crops, detailTable([item]));
      const [x, y, w, h] = data.boxes[item];
      body.append(element("p", "numbers", `Annotation ${data.ids[item]}, box x ${x}, y ${y}, ${w} × ${h} pixels`));
      body.append(element("h3", "", "Whole image"));
    }
    const whole = element("div", "tiles");
    ["image", ...columns].forEach((name, column) => {
      whole.append(tile(name, picture(`images/${entry.image}-${column}`), `${file}, ${name}`, column ? column - 1 : Infinity));
    });
    body.append(whole);
    if (data.semantic) body.append(titleLine(entry), detailTable(entry.items));
    if (!viewer.open) viewer.showModal();
    body.focus();
    viewer.scrollTop = 0;
  }

  function closed() {
    const wanted = Math.floor(current / PAGE);
    if (wanted !== page) {
      page = wanted;
      draw();
    }
    focusCard(cards.querySelectorAll("button")[current % PAGE]);
  }

  // ------------------------------------------------------------------ keys and pointers
  function focusCard(button) {
    if (!button) return;
    cards.querySelectorAll('button[tabindex="0"]').forEach((other) => (other.tabIndex = -1));
    button.tabIndex = 0;
    button.focus();
  }

  function move(key) {
    const buttons = [...cards.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) {
      if (key !== "j" && key !== "k") return false; // arrows scroll until a card has the focus
      focusCard(buttons[0]);
      return true;
    }
    const top = (button) => button.parentElement.offsetTop;
    const perRow = buttons.filter((button) => top(button) === top(buttons[0])).length;
    const steps = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow };
    const to = key === "Home" ? 0 : key === "End" ? buttons.length - 1 : at + steps[key];
    if (buttons[to]) focusCard(buttons[to]);
    else if (Math.abs(steps[key]) === 1) turn(steps[key], steps[key] < 0);
    return true;
  }

  const MOVES = new Set(["j", "k", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"]);
  const FORWARD = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (viewer.open) {
      if (!(event.key in FORWARD)) return;
      event.preventDefault();
      open(current + FORWARD[event.key]);
      return;
    }
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (MOVES.has(event.key)) {
      if (move(event.key)) event.preventDefault();
      return;
    }
    const actions = {
      "/": () => find.focus(),
      "?": () => help.showModal(),
      n: () => turn(1, false),
      p: () => turn(-1, false),
      w: () => worst.hidden || switchWorst(),
      v: () => {
        if (view.options.length < 2) return;
        view.selectedIndex = 1 - view.selectedIndex;
        update();
      },
    };
    if (event.key in actions) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  let typing = 0;
  find.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(update, 120);
  });
  below.addEventListener("input", () => {
    if (!sort.value) sort.selectedIndex = 0; // below of what
    update();
  });
  worst.addEventListener("click", switchWorst);
  [classes, masks, sort, order, view].forEach((control) => control.addEventListener("change", update));
  byId("toolbar").addEventListener("submit", (event) => event.preventDefault());
  cards.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) open(page * PAGE + [...cards.querySelectorAll("button")].indexOf(button));
  });
  byId("previous").addEventListener("click", () => turn(-1, false));
  byId("next").addEventListener("click", () => turn(1, false));
  viewer.addEventListener("close", closed);
  for (const dialog of [viewer, help]) {
    dialog.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (event.target === dialog || (button && button.hasAttribute("data-close"))) dialog.close();
      else if (button && button.dataset.step) open(current + Number(button.dataset.step));
    });
  }
  document.addEventListener("keydown", pressed);

  fillSelects();
  update();
})();
