"use strict";
(async () => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const labelled = (text, control) => make("label", {}, text, control);
  const choice = (values, any) => make("select", {}, ...(any ? [make("option", { value: "" }, any)] : []),
    ...values.map((value) => make("option", { value }, value)));

  // Words stay whole, but for those that no line could hold.
  const endless = (text) => /\S{25}/.test(text);
  for (const cell of $$("td")) if (endless(cell.textContent)) cell.classList.add("long");

  // The address: every choice that is not the first one. Keys are "figure.choice", "rows.q", "rows.f.column".
  const readers = [];
  const address = () => new URLSearchParams(location.hash.slice(1));
  const remember = (key, value) => {
    const state = address();
    if (value) state.set(key, value); else state.delete(key);
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.href.split("#")[0]);
  };
  const recall = () => { const state = address(); for (const reader of readers) reader(state); };
  addEventListener("hashchange", recall);

  // Pictures: one panel of a figure is shown, chosen by a select for each thing in which the panels differ.
  for (const figure of $$("[data-figure]")) {
    const name = figure.dataset.figure;
    const panels = $$(".panel", figure).map((element) => ({ element, is: JSON.parse(element.dataset.choices) }));
    const keys = [...new Set(panels.flatMap((panel) => Object.keys(panel.is)))]
      .filter((key) => new Set(panels.map((panel) => panel.is[key])).size > 1);
    const selects = new Map(keys.map((key) =>
      [key, choice([...new Set(panels.map((panel) => panel.is[key]).filter((value) => value !== undefined))])]));
    let shown = panels[0];
    const show = (panel) => {
      shown = panel;
      for (const one of panels) one.element.hidden = one !== panel;
      for (const [key, select] of selects) select.value = panel.is[key] ?? "";
      hideTip();
    };
    // The panel that agrees in most of what is wanted; the first key counts most, and what was just chosen above all.
    const nearest = (wanted, above) => {
      const score = (panel) => keys.reduce((sum, key, place) =>
        sum + (panel.is[key] === wanted[key] ? 2 ** (key === above ? keys.length : keys.length - place - 1) : 0), 0);
      return panels.reduce((best, panel) => (score(panel) > score(best) ? panel : best));
    };
    for (const [key, select] of selects) {
      select.addEventListener("change", () => {
        show(nearest({ ...shown.is, [key]: select.value }, key));
        for (const other of keys) remember(`${name}.${other}`, shown === panels[0] ? "" : shown.is[other]);
      });
      $(".choices", figure).append(labelled(key, select));
    }
    readers.push((state) => {
      const wanted = Object.fromEntries(keys.map((key) => [key, state.get(`${name}.${key}`) ?? panels[0].is[key]]));
      show(nearest(wanted));
    });
  }

  // Points: the pointer or the keyboard is at a figure, and its line of the table beside is shown.
  const tip = $("#tip");
  function hideTip() { tip.hidden = true; }
  const showTip = (point) => {
    tip.replaceChildren(make("b", {}, point.line[0]), ...point.line.slice(1).flatMap((text, place) =>
      (text && text !== "–" ? [make("span", {}, `${point.heads[place + 1]} `), text, make("br")] : [])));
    tip.hidden = false;
    const at = point.element.getBoundingClientRect();
    const left = Math.min(at.left + at.width / 2, innerWidth - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 4;
    tip.style.left = `${Math.max(8, left) + scrollX}px`;
    tip.style.top = `${(above > 4 ? above : at.bottom + 4) + scrollY}px`;
  };
  for (const panel of $$(".panel")) {
    const heads = $$(".beside th", panel).map((cell) => cell.textContent);
    const lines = $$(".beside tbody tr", panel);
    const points = $$(".points circle", panel).map((element, place) =>
      ({ element, heads, line: [...lines[place].cells].map((cell) => cell.textContent) }));
    points.forEach((point, place) => {
      const { element } = point;
      element.setAttribute("tabindex", place ? "-1" : "0");
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", point.line.map((text, at) => `${heads[at]}: ${text}`).join("; "));
      for (const event of ["pointerenter", "focus"]) element.addEventListener(event, () => showTip(point));
      for (const event of ["pointerleave", "blur"]) element.addEventListener(event, hideTip);
      element.addEventListener("keydown", (event) => {
        const to = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
          Home: 0, End: points.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        const next = points[Math.max(0, Math.min(points.length - 1, to))].element;
        for (const other of points) other.element.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  // Rows. A column has each text once, and for each row the place of its own.
  const load = async () => {
    const found = $("#data");
    if (found.type === "application/json") return JSON.parse(found.textContent);
    const bytes = Uint8Array.from(atob(found.textContent), (character) => character.charCodeAt(0));
    found.remove();
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const rows = $("#rows");
  if (rows) {
    const { columns } = await load();
    const size = 200, count = Number(rows.dataset.count);
    for (const column of columns) column.of ??= Uint32Array.from({ length: count }, (_, row) => row);
    const collator = new Intl.Collator("en", { numeric: true });
    const shown = columns.filter((column) => ["key", "more"].includes(column.place));
    const body = $("tbody", rows), status = $(".count", rows), pages = $(".pages", rows);
    const view = { q: "", filters: new Map(), sort: "", down: false, page: 0, open: new Set(), order: [] };

    const ranks = new Map(); // of a column's texts
    const ranked = (column) => {
      if (!ranks.has(column)) {
        const { texts, keys } = column;
        const places = texts.map((_, place) => place).sort((a, b) => (keys
          ? (keys[a] ?? Infinity) - (keys[b] ?? Infinity) || 0 : collator.compare(texts[a], texts[b])));
        const found = new Uint32Array(texts.length);
        places.forEach((place, rank) => { found[place] = rank; });
        ranks.set(column, found);
      }
      return ranks.get(column);
    };
    const choose = () => {
      const kept = new Uint8Array(count).fill(1);
      for (const [column, text] of view.filters) {
        const wanted = column.texts.indexOf(text);
        for (let row = 0; row < count; row += 1) if (column.of[row] !== wanted) kept[row] = 0;
      }
      for (const word of view.q.toLowerCase().split(/\s+/).filter(Boolean)) {
        const hit = new Uint8Array(count);
        for (const { texts, of } of columns) {
          const matches = texts.map((text) => text.toLowerCase().includes(word));
          if (matches.includes(true)) for (let row = 0; row < count; row += 1) if (matches[of[row]]) hit[row] = 1;
        }
        for (let row = 0; row < count; row += 1) kept[row] &= hit[row];
      }
      view.order = [];
      for (let row = 0; row < count; row += 1) if (kept[row]) view.order.push(row);
      const column = shown.find(({ head }) => head === view.sort);
      if (column) {
        const rank = ranked(column), way = view.down ? -1 : 1;
        const absent = (row) => (column.keys ? column.keys[column.of[row]] === null : false); // last, either way
        view.order.sort((a, b) => absent(a) - absent(b) || way * (rank[column.of[a]] - rank[column.of[b]]) || a - b);
      }
    };
    const cell = (column, row) => {
      const place = column.of[row];
      const text = column.texts[place], tone = column.tones?.[place];
      const kinds = [column.place, column.left && "left", tone, endless(text) && "long"];
      return make("td", { className: kinds.filter(Boolean).join(" "), title: text.length > 60 ? text : "" }, text);
    };
    const details = (row) => {
      const list = make("dl");
      for (const column of columns) {
        const text = column.texts[column.of[row]];
        if (column.place === "filter" || !text || text === "–") continue;
        list.append(make("dt", {}, column.head), make("dd", {}, text));
      }
      return make("tr", { className: "opened" }, make("td", { colSpan: shown.length }, list));
    };
    const draw = () => {
      const last = Math.max(0, Math.ceil(view.order.length / size) - 1);
      view.page = Math.min(view.page, last);
      const from = view.page * size, page = view.order.slice(from, from + size);
      body.replaceChildren(...page.flatMap((row) => {
        const cells = shown.map((column) => cell(column, row)), opened = view.open.has(row);
        cells.find((one) => one.classList.contains("key")).prepend(make("button", { className: "open", type: "button", ariaExpanded: String(opened),
          ariaLabel: `values and warnings of row ${row + 1}`, onclick: () => toggle(row) }, opened ? "▾" : "▸"));
        return [make("tr", {}, ...cells), ...(opened ? [details(row)] : [])];
      }));
      const all = view.order.length === count ? `${count}` : `${view.order.length} of ${count}`;
      status.textContent = `${all} row${count === 1 ? "" : "s"}${last ? `, ${from + 1} to ${from + page.length}` : ""}`;
      pages.replaceChildren(...(last ? [[-1, "Previous"], [1, "Next"]].map(([step, text]) =>
        make("button", { type: "button", disabled: view.page + step < 0 || view.page + step > last,
          onclick: () => { turn(view.page + step); } }, text)) : []));
      heads.forEach((head, place) => {
        if (shown[place].head === view.sort) head.ariaSort = view.down ? "descending" : "ascending";
        else head.ariaSort = "none";
      });
    };
    const turn = (page) => {
      view.page = page;
      remember("rows.page", page ? String(page + 1) : "");
      draw();
      rows.scrollIntoView();
    };
    const toggle = (row) => {
      if (!view.open.delete(row)) view.open.add(row);
      remember("rows.open", [...view.open].slice(0, 50).map((one) => one + 1).join(" "));
      draw();
      $(`[aria-label="values and warnings of row ${row + 1}"]`, body)?.focus();
    };
    const changed = () => { view.page = 0; remember("rows.page", ""); choose(); draw(); };

    const heads = $$("thead th", rows);
    heads.forEach((head, place) => {
      const { head: name, keys } = shown[place];
      head.replaceChildren(make("button", { type: "button", onclick: () => {
        // Figures from the greatest down first, words from A on; a third press gives the order of the measurements.
        const first = Boolean(keys), again = view.sort === name;
        if (again && view.down !== first) view.sort = ""; else { view.down = again ? !view.down : first; view.sort = name; }
        remember("rows.sort", view.sort && (view.down ? "-" : "") + view.sort);
        changed();
      } }, name));
    });
    const search = make("input", { type: "search", autocomplete: "off", spellcheck: false,
      placeholder: "words, as in unified 512" });
    let waiting = 0;
    search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { view.q = search.value; remember("rows.q", view.q); changed(); }, count > 5000 ? 200 : 0);
    });
    const filters = columns.filter((column) => column.filter && column.texts.length > 1).map((column) => {
      const texts = column.keys ? column.texts : [...column.texts].sort(collator.compare);
      const select = choice(texts, "all");
      select.addEventListener("change", () => {
        if (select.value) view.filters.set(column, select.value); else view.filters.delete(column);
        remember(`rows.f.${column.head}`, select.value);
        changed();
      });
      return { column, select };
    });
    $(".filters", rows).append(labelled("search", search), ...filters.map(({ column, select }) => labelled(column.head, select)));
    readers.push((state) => {
      view.q = search.value = state.get("rows.q") ?? "";
      view.filters.clear();
      for (const { column, select } of filters) {
        const text = state.get(`rows.f.${column.head}`) ?? "";
        select.value = column.texts.includes(text) ? text : "";
        if (select.value) view.filters.set(column, select.value);
      }
      const sort = state.get("rows.sort") ?? "";
      view.down = sort.startsWith("-");
      view.sort = sort.slice(Number(view.down));
      view.page = Math.max(0, (parseInt(state.get("rows.page") ?? "1", 10) || 1) - 1);
      view.open = new Set((state.get("rows.open") ?? "").split(" ").map(Number).filter((one) => one > 0 && one <= count)
        .map((one) => one - 1));
      choose();
      draw();
    });
  }

  // On paper nothing can be opened: what is folded there is open.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = $$("details:not([open])").filter((element) => !element.matches(".beside"));
    for (const element of opened) element.open = true;
  });
  addEventListener("afterprint", () => { for (const element of opened) element.open = false; });

  recall();
})();
