// Shows a log that may be long, fast and hostile. Text becomes text nodes only; of terminal sequences only colours and
// weights (SGR) are kept, as classes; lines are drawn once a frame, and only the newest are kept.

const KEPT_LINES = 5000;
const LINES_A_FRAME = 500;
const LONGEST_LINE = 4000;
// CSI sequences, OSC sequences (titles, links), and other two-character escapes.
const ESCAPES = /\u001b\[([0-9;:]*)([\u0020-\u002f]*[\u0040-\u007e])|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|\u001b[^[\]]?/g;
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f\u202a-\u202e\u2066-\u2069]/g;
const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

// Splits lines into pieces with classes; colours last until a sequence ends them, also over lines.
export class Ansi {
  #state = {};

  pieces(line) {
    const found = [];
    let from = 0;
    for (const match of line.matchAll(ESCAPES)) {
      this.#push(found, line.slice(from, match.index));
      from = match.index + match[0].length;
      if (match[2] === "m") this.#select(match[1]);
    }
    this.#push(found, line.slice(from));
    return found;
  }

  #push(found, text) {
    const clean = text.replace(CONTROLS, "");
    if (clean) found.push({ text: clean, classes: Object.values(this.#state) });
  }

  #select(parameters) {
    const codes = parameters.split(/[;:]/).map((code) => Number(code || 0));
    for (let i = 0; i < codes.length; i++) {
      const code = codes[i];
      if (code === 0) this.#state = {};
      else if (code === 1) this.#state.weight = "a-bold";
      else if (code === 2) this.#state.weight = "a-dim";
      else if (code === 3) this.#state.slant = "a-italic";
      else if (code === 4) this.#state.line = "a-underline";
      else if (code === 22) delete this.#state.weight;
      else if (code === 23) delete this.#state.slant;
      else if (code === 24) delete this.#state.line;
      else if (code === 39) delete this.#state.colour;
      else if (code === 49) delete this.#state.ground;
      else if (code >= 30 && code <= 37) this.#state.colour = `a-${NAMES[code - 30]}`;
      else if (code >= 90 && code <= 97) this.#state.colour = `a-${NAMES[code - 90]}`;
      else if (code >= 40 && code <= 47) this.#state.ground = `a-on-${NAMES[code - 40]}`;
      else if (code >= 100 && code <= 107) this.#state.ground = `a-on-${NAMES[code - 100]}`;
      else if (code === 38 || code === 48) {
        const shades = codes[i + 1] === 5 ? 1 : codes[i + 1] === 2 ? 3 : 0;
        const name = shades === 1 && codes[i + 2] < 16 ? NAMES[codes[i + 2] % 8] : null;
        if (name && code === 38) this.#state.colour = `a-${name}`;
        if (name && code === 48) this.#state.ground = `a-on-${name}`;
        i += shades + 1;
      }
    }
  }
}

export class LogView {
  #element;
  #follow;
  #changed;
  #ansi = new Ansi();
  #waiting = [];
  #shown = 0;
  #left = 0;
  #note = null;
  #frame = 0;
  #following = true;

  // `element` shows the lines, the button `follow` appears while the reader has scrolled up, and `changed(lines)` is
  // called with the number of lines so far, at most once a frame.
  constructor(element, follow, changed) {
    this.#element = element;
    this.#follow = follow;
    this.#changed = changed;
    element.addEventListener("scroll", () => {
      this.#following = element.scrollHeight - element.scrollTop - element.clientHeight < 32;
      follow.hidden = this.#following;
    }, { passive: true });
    follow.addEventListener("click", () => {
      this.#following = true;
      follow.hidden = true;
      this.#toEnd();
      element.focus();
    });
  }

  push(text) {
    for (const line of text.replace(/\r?\n$/, "").split(/\r?\n/)) this.#waiting.push(line);
    if (this.#waiting.length > 2 * KEPT_LINES) this.#skip();
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  clear() {
    cancelAnimationFrame(this.#frame);
    this.#frame = this.#shown = this.#left = 0;
    this.#waiting = [];
    this.#ansi = new Ansi();
    this.#note = null;
    this.#following = true;
    this.#follow.hidden = true;
    this.#element.replaceChildren();
    this.#changed(0);
  }

  // To be called when the log becomes visible.
  revealed() {
    if (this.#following) this.#toEnd();
  }

  #skip() {
    const over = this.#waiting.length - KEPT_LINES;
    if (over > 0) {
      this.#waiting.splice(0, over);
      this.#left += over;
    }
  }

  #draw() {
    this.#skip();
    const lines = this.#waiting.splice(0, LINES_A_FRAME);
    const drawn = document.createDocumentFragment();
    for (const line of lines) drawn.append(this.#line(line));
    this.#element.append(drawn);
    this.#shown += lines.length;
    while (this.#shown > KEPT_LINES) {
      (this.#note ? this.#note.nextSibling : this.#element.firstChild).remove();
      this.#shown -= 1;
      this.#left += 1;
    }
    if (this.#left) this.#sayLeft();
    if (this.#following) this.#toEnd();
    this.#changed(this.#left + this.#shown + this.#waiting.length);
    this.#frame = this.#waiting.length ? requestAnimationFrame(() => this.#draw()) : 0;
  }

  #line(text) {
    const element = document.createElement("span");
    element.className = "line";
    // A carriage return starts the line again (progress bars): what stood there is overwritten.
    const last = text.replace(/\r+$/, "").split("\r").pop();
    const short = last.length > LONGEST_LINE ? last.slice(0, LONGEST_LINE) + " […]" : last;
    for (const piece of this.#ansi.pieces(short)) {
      if (piece.classes.length) {
        const span = document.createElement("span");
        span.className = piece.classes.join(" ");
        span.textContent = piece.text;
        element.append(span);
      } else element.append(piece.text);
    }
    element.append("\n");
    return element;
  }

  #sayLeft() {
    if (!this.#note) {
      this.#note = document.createElement("span");
      this.#note.className = "line log-note";
      this.#element.prepend(this.#note);
    }
    this.#note.textContent = `${this.#left.toLocaleString("en")} earlier lines are not shown here.\n`;
  }

  #toEnd() {
    this.#element.scrollTop = this.#element.scrollHeight;
  }
}
