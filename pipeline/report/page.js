"use strict";
// Draws what the page carries as data: players, retrieval graphs, the timeline of workers. No library, nothing fetched.
// Text from outside only ever becomes textContent, an attribute set by setAttribute, or passes escapeText.

const data = JSON.parse(document.getElementById("data").textContent);
const escapeText = value => String(value).replace(/[&<>"']/g, char => `&#${char.charCodeAt(0)};`);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function clock(seconds, digits = 1) {
  if (seconds >= 3600) {
    const whole = Math.round(seconds);
    return `${Math.floor(whole / 3600)}:${String(Math.floor(whole / 60) % 60).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
  }
  const scale = 10 ** digits, units = Math.round(seconds * scale);
  const rest = (units % (60 * scale)) / scale;
  return `${Math.floor(units / (60 * scale))}:${rest.toFixed(digits).padStart(digits ? 3 + digits : 2, "0")}`;
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function button(label, pressed, act) {
  const node = element("button", { type: "button" }, label);
  if (pressed !== null) node.setAttribute("aria-pressed", pressed);
  node.addEventListener("click", () => act(node));
  return node;
}

function choice(name, options, chosen, act) {
  const group = element("span", { class: "group", role: "group", "aria-label": name });
  for (const [value, label] of options) {
    group.append(button(label, value === chosen, node => {
      for (const other of group.children) other.setAttribute("aria-pressed", other === node);
      act(value);
    }));
  }
  return group;
}

// Sections far below the fold cost nothing until they come near.
const nearby = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    nearby.unobserve(entry.target);
    entry.target.whenNear();
  }
}, { rootMargin: "800px" });

function whenNear(node, act) {
  node.whenNear = act;
  nearby.observe(node);
}

function onResize(node, draw) {
  let width = node.clientWidth;
  new ResizeObserver(() => {
    if (Math.abs(node.clientWidth - width) < 2) return;
    width = node.clientWidth;
    draw();
  }).observe(node);
}

// Filter of the table of videos.

const filter = document.getElementById("filter");
if (filter) {
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll("#videos tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}

// One video: its player, filmstrip and graph point at the same segment.

class VideoPanel {
  constructor(section, number) {
    this.section = section;
    this.number = number;
    this.info = data.videos[number];
    this.segments = this.info.segments;
    this.index = new Map(this.segments.map((segment, place) => [segment[0], place]));
    this.video = null;
    this.graph = null;
    const player = section.querySelector("[data-player]");
    if (player) this.openPlayer(player);
    for (const item of section.querySelectorAll("[data-film] button")) {
      item.addEventListener("click", () => {
        const place = this.index.get(Number(item.dataset.segment));
        this.seek(place);
        if (this.graph) this.graph.pick(place);
      });
    }
    const graph = section.querySelector("[data-graph]");
    if (graph) this.graph = new RetrievalGraph(graph, this);
  }

  openPlayer(player) {
    const base64 = document.getElementById(`preview-${this.number}`).textContent;
    const bytes = Uint8Array.from(atob(base64), char => char.charCodeAt(0));
    this.video = player.querySelector("video");
    this.video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
    this.video.addEventListener("timeupdate", () => this.markPlaying());
    const wipe = new Wipe(player, this.video);
    const views = this.section.querySelectorAll("[data-view]");
    for (const view of views) {
      view.addEventListener("click", () => {
        for (const other of views) other.setAttribute("aria-pressed", other === view);
        wipe.show(view.dataset.view === "wipe");
      });
    }
  }

  // The preview shows the whole video, at a stride: places in it are proportional.
  seek(place) {
    if (!this.video || !this.video.duration || !this.info.frames) return;
    this.video.currentTime = Math.min(((this.segments[place][2] + 0.5) / this.info.frames) * this.video.duration, this.video.duration - 0.001);
  }

  markPlaying() {
    if (!this.video.duration) return;
    const frame = (this.video.currentTime / this.video.duration) * this.info.frames;
    let playing = null;
    for (const item of this.section.querySelectorAll("[data-film] button")) {
      item.classList.remove("now");
      if (this.segments[this.index.get(Number(item.dataset.segment))][2] <= frame + 1) playing = item;
    }
    if (!playing) return;
    playing.classList.add("now");
    const film = playing.closest("[data-film]"), left = playing.parentElement.offsetLeft - film.offsetLeft;
    if (!this.video.paused && (left < film.scrollLeft || left + playing.offsetWidth > film.scrollLeft + film.clientWidth)) film.scrollLeft = left;
  }

  when(frame) {
    return this.info.fps ? clock(frame / this.info.fps) : `frame ${frame}`;
  }
}

// Source and result over each other, with a line between that follows the pointer.

class Wipe {
  constructor(player, video) {
    this.video = video;
    this.labels = player.querySelector(".labels");
    this.split = 0.5;
    this.canvas = element("canvas", { hidden: "", role: "img", tabindex: "0", "aria-label": "Source left of the line, result right of it; arrow keys move the line" });
    this.toggle = button("Play", null, () => (video.paused ? video.play() : video.pause()));
    this.time = element("input", { type: "range", min: "0", max: "1", step: "any", value: "0", "aria-label": "Position in the video" });
    this.transport = element("div", { class: "transport", hidden: "" }, this.toggle, this.time);
    player.append(this.canvas, this.transport);
    const move = event => {
      // The picture may be letterboxed inside the canvas element.
      const box = this.canvas.getBoundingClientRect();
      const width = Math.min(box.width, (box.height * this.canvas.width) / this.canvas.height);
      this.split = clamp((event.clientX - box.left - (box.width - width) / 2) / width, 0, 1);
      this.draw();
    };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerdown", move);
    this.canvas.addEventListener("keydown", event => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (event.key === " ") this.toggle.click();
      else if (step) this.split = clamp(this.split + step, 0, 1);
      else return;
      event.preventDefault();
      this.draw();
    });
    this.time.addEventListener("input", () => { video.currentTime = this.time.value * video.duration; });
    for (const name of ["play", "pause"]) video.addEventListener(name, () => { this.toggle.textContent = video.paused ? "Play" : "Pause"; this.follow(); });
    for (const name of ["seeked", "loadeddata"]) video.addEventListener(name, () => this.draw());
  }

  show(on) {
    this.video.hidden = on;
    this.canvas.hidden = this.transport.hidden = !on;
    this.draw();
    this.follow();
  }

  follow() {
    if (this.canvas.hidden || this.video.paused) return;
    this.draw();
    requestAnimationFrame(() => this.follow());
  }

  draw() {
    const { canvas, video } = this;
    if (canvas.hidden || !video.videoWidth) return;
    const width = video.videoWidth / 2, height = video.videoHeight;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const line = Math.round(this.split * width), context = canvas.getContext("2d");
    if (line > 0) context.drawImage(video, 0, 0, line, height, 0, 0, line, height);
    if (line < width) context.drawImage(video, width + line, 0, width - line, height, line, 0, width - line, height);
    context.fillStyle = "#fff";
    context.fillRect(line - 0.5, 0, 1, height);
    if (video.duration) this.time.value = video.currentTime / video.duration;
  }
}

// Segments on a line, grouped by shot; arcs above from a segment to what was retrieved for it, below to the one before it.

const SCORE_CLASSES = 5;

// Heights in pixels: of the longest arc, of the line of segments, of the whole.
function graphSize(segments) {
  let reach = 1;
  segments.forEach(([segment, , , , , memories]) => {
    for (const [memory, isPrevious] of memories) if (!isPrevious) reach = Math.max(reach, segment - memory);
  });
  const tall = clamp(40 + 16 * Math.sqrt(reach), 60, 190);
  return { reach, tall, line: tall + 14, foot: tall + 60 };
}

class RetrievalGraph {
  constructor(holder, panel) {
    this.panel = panel;
    this.segments = panel.segments;
    this.scale = "scroll";
    this.picked = null;
    const memories = this.segments.flatMap(segment => segment[5]);
    const scores = memories.filter(memory => !memory[1]).map(memory => memory[2]);
    this.low = scores.reduce((a, b) => Math.min(a, b), Infinity);
    this.high = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    const volume = kernel => kernel.split("×").reduce((product, side) => product * Number(side), 1);
    this.thickness = data.kernels.map(kernel => new Set(data.kernels.map(volume).filter(other => other < volume(kernel))).size);
    this.pan = element("div", { class: "pan", tabindex: "0", role: "group", "aria-label": "Left and right arrow keys go from segment to segment" });
    this.detail = element("div", { class: "detail", "aria-live": "polite" });
    const bar = holder.previousElementSibling;
    bar.append(this.legend(scores.length > 0, memories.some(memory => memory[1])), element("span", { class: "spring" }));
    this.widths = choice("Width", [["scroll", "Wide"], ["fit", "Fit"]], "scroll", value => { this.scale = value; this.draw(); });
    bar.append(this.widths);
    holder.classList.add("graph");
    holder.append(this.pan, this.detail);
    this.pan.addEventListener("click", event => this.pick(this.placeOf(event)));
    this.pan.addEventListener("pointermove", event => { if (!this.isPinned) this.mark(this.placeOf(event)); });
    this.pan.addEventListener("pointerleave", () => { if (!this.isPinned) this.mark(null); });
    this.pan.addEventListener("keydown", event => this.key(event));
    this.draw();
    onResize(this.pan, () => this.draw());
  }

  legend(hasScores, hasPrevious) {
    const legend = element("span", { class: "legend" });
    if (hasScores) {
      const ramp = element("span", { class: "ramp" });
      ramp.append(`score ${(this.low / 1000).toFixed(2)} `);
      for (let bin = 0; bin < SCORE_CLASSES; bin++) ramp.append(element("i", { style: `background: var(--s${bin})` }));
      ramp.append(` ${(this.high / 1000).toFixed(2)}`);
      legend.append(ramp, element("span", {}, "thicker: finer kernel"));
    }
    if (hasPrevious) legend.append(element("span", {}, element("i", { style: "background: var(--previous); height: 2px; vertical-align: middle" }), "previous segment"));
    return legend;
  }

  colour(score) {
    if (this.high === this.low) return SCORE_CLASSES - 1;
    return clamp(Math.floor(((score - this.low) / (this.high - this.low)) * SCORE_CLASSES), 0, SCORE_CLASSES - 1);
  }

  draw() {
    const count = this.segments.length, margin = 14;
    const room = Math.max(this.pan.clientWidth, 320) - 2 * margin;
    const fitting = room / count;
    this.widths.hidden = fitting >= 9;
    this.step = clamp(fitting, this.scale === "fit" ? 0.2 : 9, 80);
    this.margin = margin;
    const width = 2 * margin + count * this.step;
    const middle = place => margin + (place + 0.5) * this.step;
    const { reach, tall, line, foot } = graphSize(this.segments);
    const svg = [`<svg role="img" aria-label="Retrieval graph of ${count} segments" width="${Math.max(width, 1)}" height="${foot}">`];
    let shotStart = 0;
    for (let place = 1; place <= count; place++) {
      if (place < count && this.segments[place][1] === this.segments[shotStart][1]) continue;
      const x = margin + shotStart * this.step, span = (place - shotStart) * this.step, shot = this.segments[shotStart][1];
      if (shot % 2 === 0) svg.push(`<rect class="band" x="${x}" y="0" width="${span}" height="${foot}"/>`);
      if (span > 46) svg.push(`<text x="${x + 4}" y="${foot - 6}">shot ${shot}</text>`);
      shotStart = place;
    }
    this.segments.forEach((_, place) => svg.push(`<rect class="column" data-place="${place}" x="${margin + place * this.step}" y="0" width="${this.step}" height="${foot}"/>`));
    this.segments.forEach(([segment, , , , , memories], place) => {
      for (const [memory, isPrevious, score, kernel] of memories) {
        const from = middle(place), other = this.panel.index.get(memory), to = middle(other), x = from - to;
        const label = `${segment} draws on ${memory}: ${isPrevious ? "previous" : "retrieved"}, score ${(score / 1000).toFixed(3)}, kernel ${data.kernels[kernel]}`;
        const ends = `data-from="${place}" data-to="${other}"`;
        if (isPrevious) svg.push(`<path class="arc previous" ${ends} d="M${from} ${line + 10}q${-x / 2} 14 ${-x} 0"><title>${label}</title></path>`);
        else {
          const height = clamp(14 + (tall - 14) * Math.sqrt((place - other) / reach), 14, tall);
          svg.push(`<path class="arc c${this.colour(score)} k${Math.min(this.thickness[kernel], 2)}" ${ends} d="M${from} ${line}C${from} ${line - height * 1.3} ${to} ${line - height * 1.3} ${to} ${line}"><title>${label}</title></path>`);
        }
      }
    });
    const memoryCount = this.segments.reduce((sum, segment) => sum + segment[5].length, 0);
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find(each => each * this.step >= 26) || 1000;
    this.segments.forEach(([segment, , , , state], place) => {
      const inset = this.step > 4 ? 1 : 0;
      svg.push(`<rect class="seg${["", " missing", " failed"][state]}" data-seg="${place}" x="${margin + place * this.step + inset}" y="${line}" width="${Math.max(this.step - 2 * inset, 0.5)}" height="9" rx="${inset}" pointer-events="none"/>`);
      if (segment % every === 0) svg.push(`<text x="${middle(place)}" y="${line + 28}" text-anchor="middle" pointer-events="none">${segment}</text>`);
    });
    svg.push("</svg>");
    this.pan.innerHTML = svg.join("");
    this.svg = this.pan.firstElementChild;
    this.svg.style.setProperty("--dim", clamp(20 / (memoryCount || 1), 0.02, 0.14));
    this.detail.style.minHeight = "";
    this.arcsAt = this.segments.map(() => []);
    for (const arc of this.svg.querySelectorAll(".arc")) {
      this.arcsAt[arc.dataset.from].push([arc, "in"]);
      this.arcsAt[arc.dataset.to].push([arc, "out"]);
    }
    const picked = this.picked;
    this.picked = null;
    this.mark(picked, true);
  }

  placeOf(event) {
    const target = event.target.closest("[data-place], [data-from]");
    if (!target || !this.svg.contains(target)) return null;
    return Number(target.dataset.place ?? target.dataset.from);
  }

  pick(place) {
    this.isPinned = place !== null && !(this.isPinned && place === this.picked);
    this.mark(place, true);
    if (this.isPinned) {
      const x = this.margin + place * this.step;
      if (x < this.pan.scrollLeft || x + this.step > this.pan.scrollLeft + this.pan.clientWidth) this.pan.scrollLeft = x - this.pan.clientWidth / 2;
    }
  }

  key(event) {
    const last = this.segments.length - 1, place = this.picked;
    const goal = { ArrowLeft: place === null ? last : place - 1, ArrowRight: place === null ? 0 : place + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") { this.isPinned = false; this.mark(null); return; }
    if (event.key === "Enter" && place !== null) { this.panel.seek(place); return; }
    if (goal === undefined) return;
    event.preventDefault();
    this.isPinned = false;
    this.pick(clamp(goal, 0, last));
  }

  mark(place, always = false) {
    if (place === this.picked && !always) return;
    if (this.picked !== null) for (const [arc, role] of this.arcsAt[this.picked]) arc.classList.remove(role);
    this.svg.querySelector(".here")?.classList.remove("here");
    this.svg.classList.toggle("picked", place !== null);
    this.picked = place;
    if (place !== null) {
      for (const [arc, role] of this.arcsAt[place]) arc.classList.add(role);
      this.svg.querySelector(`[data-seg="${place}"]`).classList.add("here");
    }
    this.describe(place);
  }

  // What was last pointed at stays described, and the box never shrinks, so that the page does not jump.
  describe(place) {
    if (place === null) {
      if (!this.detail.firstChild) this.detail.replaceChildren(element("span", { class: "soft" }, "Point at a segment to see what it drew on; click to keep it. Solid arcs: its memories; dashed: segments that drew on it."));
      return;
    }
    const [segment, shot, start, end, state, memories] = this.segments[place];
    const users = this.arcsAt[place].filter(([, role]) => role === "out").map(([arc]) => this.segments[arc.dataset.from][0]);
    const facts = [`shot ${shot}, ${this.panel.when(start)}`, `frames ${start}–${end}`, `remembered by ${users.length ? (users.length > 8 ? `${users.length} segments` : [...new Set(users)].join(", ")) : "none"}`];
    if (state) facts.push(["", "not generated", "failed"][state]);
    const cards = [this.card(segment, `Segment ${segment}`, facts)];
    for (const [memory, isPrevious, score, kernel] of [...memories].sort((a, b) => b[1] - a[1] || b[2] - a[2])) {
      const other = this.segments[this.panel.index.get(memory)];
      cards.push(this.card(memory, `${isPrevious ? "Previous" : "Retrieved"} ${memory}`, [`score ${(score / 1000).toFixed(3)}`, `kernel ${data.kernels[kernel]}`, `shot ${other[1]}, ${this.panel.when(other[2])}`]));
    }
    if (!memories.length) cards.push(element("span", { class: "soft" }, "draws on no earlier segment"));
    this.detail.replaceChildren(...cards);
    this.detail.style.minHeight = `${this.detail.offsetHeight}px`;
  }

  card(segment, title, facts) {
    const card = element("div", { class: "card" });
    const picture = document.getElementById(`thumb-${this.panel.number}-${segment}`);
    if (picture) {
      card.innerHTML = `<svg role="img" aria-label="First frame of segment ${segment}" viewBox="${picture.ownerSVGElement.getAttribute("viewBox")}"><use href="#${picture.id}"/></svg>`;
    }
    card.append(element("b", {}, title), ...facts.map(fact => element("small", {}, fact)));
    return card;
  }
}

// Rows are workers, bars are tasks; bars narrower than a pixel are joined with their neighbours of the same colour.

class Timeline {
  constructor(holder) {
    this.zoom = 1;
    this.colouring = "kind";
    this.byWorker = data.workers.map(() => []);
    for (const task of data.tasks) this.byWorker[task[0]].push(task);
    const bar = element("div", { class: "bar" });
    this.legend = element("span", { class: "legend" });
    bar.append(
      this.legend, element("span", { class: "spring" }),
      choice("Colour", [["kind", "By kind"], ["video", "By video"]], "kind", value => { this.colouring = value; this.draw(); }),
      choice("Zoom", [[1, "Fit"], [4, "4×"], [16, "16×"], [64, "64×"]], 1, value => this.zoomTo(value)),
    );
    const names = element("div", { class: "names" });
    data.workers.forEach(([worker, node], row) => {
      const busy = this.byWorker[row].reduce((sum, task) => sum + task[5], 0) / (data.duration || 1);
      names.append(element("div", { title: node ? `${worker} on ${node}` : worker }, worker, element("em", {}, `${Math.round(busy * 100)} %`)));
    });
    this.pan = element("div", { class: "pan", tabindex: "0", role: "group", "aria-label": "Timeline; scrolls sideways when zoomed" });
    this.below = element("p", { class: "below", "aria-live": "polite" });
    holder.append(bar, element("div", { class: "gantt" }, names, this.pan), this.below);
    this.pan.addEventListener("pointermove", event => { this.below.textContent = event.target.closest(".task")?.firstElementChild.textContent ?? ""; });
    this.draw();
    onResize(this.pan, () => this.draw());
  }

  zoomTo(zoom) {
    const centre = (this.pan.scrollLeft + this.pan.clientWidth / 2) / this.pan.scrollWidth;
    this.zoom = zoom;
    this.draw();
    this.pan.scrollLeft = centre * this.pan.scrollWidth - this.pan.clientWidth / 2;
  }

  fill(task) {
    return this.colouring === "kind" ? "" : `style="fill: hsl(${Math.round((task[2] * 137.508) % 360)} 55% 55%)"`;
  }

  draw() {
    const kinds = ["edit", "render", "assemble"], row = 20, head = 24, edge = 12;
    const width = Math.max(this.pan.clientWidth, 240) * this.zoom - 2 * edge, height = head + data.workers.length * row + 8;
    const scale = width / (data.duration || 1), group = this.colouring === "kind" ? 1 : 2;
    const svg = [`<svg role="img" aria-label="Timeline of ${data.workers.length} workers and ${data.tasks.length} tasks" width="${width + 2 * edge}" height="${height}">`];
    const tick = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200].find(each => each * scale >= 74) || 86400;
    for (let count = 0; count * tick <= data.duration + 1e-9; count++) {
      const x = edge + count * tick * scale;
      svg.push(`<path class="grid" d="M${x} ${head - 4}V${height}"/><text x="${x}" y="14" text-anchor="${count ? "middle" : "start"}">${clock(count * tick, tick < 1 ? 1 : 0)}</text>`);
    }
    const seen = new Set();
    this.byWorker.forEach((tasks, worker) => {
      let open = null;
      const close = () => {
        if (!open) return;
        const [first, start, end, joined] = open, video = escapeText(data.videos[first[2]].id);
        const what = joined > 1 ? `${joined} short tasks, the first: ` : "";
        const label = `${what}${kinds[first[1]]} ${video}${first[1] < 2 ? ` segment ${first[3]}` : ""}, at ${clock(first[4])}, ${first[5].toFixed(2)} s`;
        svg.push(`<rect class="task ${kinds[first[1]]}" ${this.fill(first)} x="${(edge + start * scale).toFixed(1)}" y="${head + worker * row + 3}" width="${Math.max((end - start) * scale - (joined > 1 ? 0 : 0.6), 0.6).toFixed(1)}" height="14" rx="1.5"><title>${label}</title></rect>`);
        open = null;
      };
      for (const task of tasks) {
        const end = task[4] + task[5];
        seen.add(task[group]);
        const isThin = task[5] * scale < 1.5;
        if (open && isThin && open[4] && open[0][group] === task[group] && (task[4] - open[2]) * scale < 1 && (end - open[1]) * scale < 6) {
          open[2] = Math.max(open[2], end);
          open[3] += 1;
          continue;
        }
        close();
        open = [task, task[4], end, 1, isThin];
      }
      close();
    });
    svg.push("</svg>");
    this.pan.innerHTML = svg.join("");
    this.legend.replaceChildren();
    for (const key of [...seen].sort((a, b) => a - b).slice(0, 12)) {
      const swatch = element("i");
      swatch.style.background = group === 1 ? `var(--${kinds[key]})` : `hsl(${Math.round((key * 137.508) % 360)} 55% 55%)`;
      this.legend.append(element("span", {}, swatch, group === 1 ? kinds[key] : data.videos[key].id.slice(0, 40)));
    }
    if (seen.size > 12) this.legend.append(element("span", {}, `and ${seen.size - 12} more`));
  }
}

// What is drawn later has its room from the start, so that links into the page land where they should.
for (const holder of document.querySelectorAll("[data-gantt]")) {
  holder.style.minHeight = `${data.workers.length * 20 + 110}px`;
  whenNear(holder, () => { holder.style.minHeight = ""; new Timeline(holder); });
}
data.videos.forEach((video, number) => {
  const section = document.getElementById(`video-${number}`), graph = section.querySelector("[data-graph]");
  if (graph) graph.style.minHeight = `${graphSize(video.segments).foot + 49}px`;
  whenNear(section, () => { section.panel = new VideoPanel(section, number); });
});
