"use strict";
/* The page of the playable dream: controls, pictures and readings around the agent of model.js. */

const HDPage = (() => {
  const FOLDER = document.currentScript.src.replace(/[^/]*$/, "");
  const RATE = 15; // steps a second in the game
  const POINT = 0.5; // an expected sign beyond it is announced as a point
  const OVER = 0.5; // a chance to go on below it ends a life, or the dream
  const KEYS = {
    ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right", " ": "fire",
  };
  const SIGNS = { up: "▲", down: "▼", left: "◀", right: "▶", fire: "fire" };
  const TRACED = 100; // steps that the lines of reward and value show
  const FADE = 4; // steps in which the light of a changed code goes out
  const PAUSE = 1500; // milliseconds between the end of a dream and the next one

  const make = (kind, parent, settings = {}) =>
    parent.appendChild(Object.assign(document.createElement(kind), settings));
  const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  /** Mean absolute difference of two frames, in grey levels. */
  function apart(one, other) {
    let sum = 0;
    for (let i = 0; i < one.length; i++) sum += Math.abs(one[i] - other[i]);
    return sum / one.length;
  }

  class Player {
    constructor(root) {
      this.root = root;
      root.tabIndex = 0;
      this.held = new Set();
      this.tapped = new Set();
      this.agents = {}; // by game
      this.timing = { model: 0, shown: 0 };
      this.build();
      this.listen();
      this.let_play("you");
      if (window.HD_GAMES.length) this.choose(window.HD_GAMES[0].game);
      else this.say("No game's data lie beside this page.");
      requestAnimationFrame((now) => this.tick(now));
    }

    // ---- the page

    build() {
      const bar = make("div", this.root, { className: "bar" });
      this.games = make("select", bar, { title: "game" });
      window.HD_GAMES.forEach(({ game, title }) =>
        make("option", this.games, { value: game, text: title }));
      const focus = () => this.root.focus({ preventScroll: true });
      this.games.onchange = () => { this.choose(this.games.value); focus(); };
      this.startsBox = make("select", bar, { title: "where the dream starts" });
      this.startsBox.onchange = () => { this.restart(); focus(); };
      const button = (name, text, act) => {
        this[name] = make("button", bar, { type: "button", textContent: text, className: name });
        this[name].onclick = () => { act(); focus(); };
      };
      button("playButton", "Play", () => this.play(!this.playing));
      button("restartButton", "Restart", () => { this.restart(); this.play(true); });
      button("agentButton", "The agent plays", () =>
        this.let_play(this.who === "agent" ? "you" : "agent"));
      button("followedButton", "What really followed", () => this.compare());
      this.speed = make("select", bar, { title: "speed" });
      for (const [rate, text] of [[5, "slow"], [RATE, "the game's speed"], [2 * RATE, "double"]]) {
        make("option", this.speed, { value: rate, text, selected: rate === RATE });
      }
      this.said = make("p", this.root, { className: "said" });
      const stage = make("div", this.root, { className: "stage" });
      const seen = make("div", stage, { className: "seen" });
      this.screens = make("div", seen, { className: "screens" });
      this.dreamed = this.screen("the dream");
      this.real = this.screen("the real game");
      this.noted = make("p", seen, { className: "noted", ariaLive: "polite" });
      this.pad = make("div", seen, { className: "pad" });
      this.drift = make("div", seen, { className: "drift", hidden: true });
      this.chart = make("canvas", this.drift);
      this.found = make("p", this.drift, { className: "found" });
      make("p", this.drift, {
        className: "small",
        textContent: "Mean difference from the real frame, in grey levels of 255 a pixel, step by "
          + "step; lower is better. A dream is of use while it stays below both guesses that know "
          + "nothing of the game: the first frame kept as it is, and the background alone.",
      });
      this.build_readings(make("div", stage, { className: "readings" }));
      this.levels = make("div", this.root, { className: "levels" });
      this.measured = make("p", this.root, { className: "small measured" });
      this.origin = make("p", this.root, { className: "small origin" });
    }

    screen(text) {
      const place = make("div", this.screens);
      const canvas = make("canvas", place, { width: HD.SIDE, height: HD.SIDE });
      make("p", place, { className: "small", textContent: text });
      return canvas;
    }

    build_readings(panel) {
      const list = make("dl", panel);
      const reading = (name, text) => {
        make("dt", list, { textContent: text });
        this[name] = make("dd", list, { className: name });
      };
      reading("stepShown", "step");
      reading("rewardShown", "predicted reward");
      reading("pointsShown", "its sum so far");
      reading("realShown", "in the real game");
      reading("valueShown", "value, by the critic");
      reading("goesOnShown", "chance that it goes on");
      this.trace = make("canvas", panel, { className: "trace" });
      this.choice = make("div", panel, { className: "choice" });
      make("p", panel, {
        className: "small",
        textContent: "Rewards are predicted as signs: +1 for a point won, −1 for one lost. The "
          + "value is what the critic expects of rewards to come, later ones counting less. The "
          + "bars show how probable each action is for the agent; bold is what was done.",
      });
    }

    listen() {
      this.root.addEventListener("keydown", (event) => {
        const key = KEYS[event.key];
        if (!key || !this.keys?.[key] || event.target.matches("select, button")) return;
        event.preventDefault();
        this.press(key);
      });
      this.root.addEventListener("keyup", (event) => this.held.delete(KEYS[event.key]));
      this.root.addEventListener("focusout", () => this.held.clear());
      this.screens.onpointerdown = () => this.root.focus({ preventScroll: true });
      addEventListener("resize", () => this.draw());
    }

    build_pad() {
      this.pad.replaceChildren();
      for (const key of ["left", "up", "down", "right", "fire"].filter((name) => this.keys[name])) {
        const button = make("button", this.pad, {
          type: "button", textContent: SIGNS[key], className: key, ariaLabel: key,
        });
        button.onpointerdown = (event) => {
          event.preventDefault();
          button.setPointerCapture(event.pointerId);
          this.press(key);
        };
        button.onpointerup = button.onpointercancel = () => this.held.delete(key);
        button.oncontextmenu = (event) => event.preventDefault();
      }
      this.pad.style.gridTemplateColumns = `repeat(${this.pad.childElementCount}, 1fr)`;
    }

    /** A key of the game: it takes over from the agent, and starts a dream that stands still. */
    press(key) {
      this.held.add(key);
      this.tapped.add(key);
      if (this.who !== "you") this.let_play("you");
      if (!this.playing) this.play(true);
    }

    say(text) {
      this.said.textContent = text;
    }

    // ---- what is played

    async choose(game) {
      this.play(false);
      this.games.value = game;
      this.checked = undefined;
      this.say("The agent is being loaded.");
      const { file } = window.HD_GAMES.find((one) => one.game === game);
      try {
        this.agents[game] ??= HD.Agent.read(await this.load(game, file));
        const agent = await this.agents[game];
        if (this.games.value !== game) return; // another was chosen meanwhile
        this.agent = agent;
      } catch (error) {
        delete this.agents[game];
        this.say(`${file} cannot be loaded: ${error.message}.`);
        return;
      }
      const { dream } = this.agent;
      this.keys = dream.keys;
      this.startsBox.replaceChildren();
      dream.starts.forEach((start, n) => make("option", this.startsBox, {
        value: n, text: `start ${n + 1}: real game, step ${start.episode_step}` }));
      this.show_levels(dream.config.agent);
      this.build_pad();
      this.show_origin();
      await this.restart();
      this.timing = { model: 0, shown: 0 };
      this.checked = this.agent.error();
      this.draw();
    }

    load(game, file) {
      return new Promise((resolve, reject) => {
        const script = make("script", document.head, { src: FOLDER + file });
        script.onload = () => resolve(window.HD_DREAMS.find((dream) => dream.game === game));
        script.onerror = () => reject(new Error("there is no such file"));
      });
    }

    get start() {
      return this.agent.dream.starts[this.startsBox.value || 0];
    }

    /** The dream from the chosen start, before its first step. */
    async restart() {
      clearTimeout(this.later);
      this.dreamer = this.agent.dreamer(this.start);
      this.step = this.points = this.reward = 0;
      this.goes_on = 1;
      this.lives = this.start.lives;
      this.over = false;
      this.action = null;
      this.note = "";
      this.changed_at = new Map();
      this.traced = { value: [], reward: [] };
      this.found.textContent = "";
      this.differences = { dream: [], still: [], empty: [] };
      this.film = null;
      this.look();
      this.explain();
      this.draw();
      const start = this.start, film = await this.film_of(start);
      if (start === this.start) this.film = film;
      this.draw();
    }

    /** The real frames from the start on, (84, 84) uint8 each. */
    async film_of(start) {
      const picture = new Image();
      picture.src = start.film;
      await picture.decode();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [HD.SIDE, picture.height];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0);
      return Array.from({ length: picture.height / HD.SIDE }, (_, t) => {
        const { data } = context.getImageData(0, t * HD.SIDE, HD.SIDE, HD.SIDE);
        return Uint8ClampedArray.from({ length: HD.SIDE ** 2 }, (_, i) => data[4 * i]);
      });
    }

    play(playing) {
      clearTimeout(this.later);
      this.playing = playing;
      if (playing && this.over) this.restart();
      this.due = performance.now();
      this.playButton.textContent = playing ? "Pause" : "Play";
      if (this.agent) this.explain();
    }

    let_play(who) {
      this.who = who;
      this.note = "";
      this.agentButton.setAttribute("aria-pressed", who === "agent");
      this.followedButton.setAttribute("aria-pressed", who === "replay");
      this.drift.hidden = who !== "replay";
      this.real.parentElement.hidden = who !== "replay";
      if (this.agent) { this.explain(); this.draw(); }
    }

    /** From the chosen start, under the actions really taken, beside what really followed. */
    async compare() {
      if (this.who === "replay") { this.let_play("you"); return; }
      this.play(false);
      await this.restart();
      this.let_play("replay");
      this.play(true);
    }

    /** The ALE id that the held keys ask for; the nearest one that the game has. */
    wished() {
      const { legal, meanings } = this.agent.dream, names = legal.map((action) => meanings[action]);
      const words = ["up", "down", "right", "left", "fire"]
        .filter((key) => this.keys[key] && (this.held.has(key) || this.tapped.has(key)))
        .map((key) => this.keys[key]);
      this.tapped.clear();
      const tries = [words, words.slice(0, -1), words.slice(0, 1), words.slice(-1)];
      const found = tries.map((some) => names.indexOf(some.join(""))).find((at) => at >= 0);
      return found === undefined || !words.length ? legal[0] : legal[found];
    }

    /** One step of the dream. */
    advance() {
      const began = performance.now(), before = this.dreamer.tokens;
      const is_replay = this.who === "replay", seen = this.dreamer.features();
      if (is_replay && this.step >= this.start.actions.length) { this.finish(); return; }
      if (is_replay) this.action = this.start.actions[this.step];
      else if (this.who === "agent") this.action = this.agent.policy.act(seen, Math.random);
      else this.action = this.wished();
      [this.reward, this.goes_on] = this.dreamer.step(this.action, Math.random);
      this.step += 1;
      this.points += this.reward;
      this.dreamer.tokens.forEach((code, i) => {
        if (code !== before[i]) this.changed_at.set(i, this.step);
      });
      this.look();
      this.traced.value.push(this.value ?? 0);
      this.traced.reward.push(this.reward);
      const took = performance.now() - began;
      this.timing.model += (took - this.timing.model) * (this.timing.model ? 0.05 : 1);
      if (is_replay) this.hold_against_truth();
      this.judge();
    }

    /** What the policy makes of the step, and the picture. */
    look() {
      const seen = this.dreamer.features();
      this.shares = this.agent.policy.actor(seen);
      this.value = this.agent.dream.has_critic ? this.agent.policy.critic(seen) : null;
      this.frame = this.agent.codec.decode(this.dreamer.tokens);
    }

    hold_against_truth() {
      const truth = this.film[this.step];
      const background = this.agent.codec.background.data.map((grey) => Math.round(255 * grey));
      this.differences.dream.push(apart(this.frame, truth));
      this.differences.still.push(apart(this.film[0], truth));
      this.differences.empty.push(apart(background, truth));
    }

    /** Points and ends, as the dream expects them. */
    judge() {
      const step = `At step ${this.step} the dream expects`;
      if (Math.abs(this.reward) > POINT) {
        const outcome = this.reward > 0 ? "won" : "lost";
        this.note = `${step} a point ${outcome} (${signed(this.reward, 2)}).`;
      }
      if (this.goes_on < OVER && this.who !== "replay") {
        this.lives -= 1;
        this.note = `${step} ${this.lives ? "that a life is lost" : "that the game is over"} `
          + `(chance to go on: ${this.goes_on.toFixed(2)}).`;
        if (!this.lives) this.finish();
      }
      this.explain();
    }

    /** After the end: the next dream from the same start; after a comparison, what it showed. */
    finish() {
      this.over = true;
      this.play(false);
      if (this.who !== "replay") {
        this.later = setTimeout(() => this.play(true), PAUSE);
        return;
      }
      const { dream, still, empty } = this.differences;
      const nearer = dream.filter((value, t) => value < Math.min(still[t], empty[t])).length;
      const [dreamed, kept, alone] = [dream, still, empty].map((one) => mean(one).toFixed(2));
      this.found.textContent = `In ${nearer} of ${dream.length} steps the dream was nearer to the `
        + `real frame than both guesses. Mean difference: dream ${dreamed}, first frame kept `
        + `${kept}, background alone ${alone}. Another dream drawn from the same start differs.`;
    }

    explain() {
      const texts = {
        you: "You play, and nothing here is the game: the world model answers to your keys and "
          + "draws every picture itself.",
        agent: "The agent plays in its own dream, as it did to learn. Press a key to take over.",
        replay: "Left the dream, right what really followed: both under the actions that the agent "
          + "took in the real game. The dream saw only what lay before.",
      };
      const keys = Object.keys(this.keys).map((key) => SIGNS[key]).join(" ");
      const is_still = !this.playing && !this.over && this.who === "you";
      const words = keys.replace("fire", "and space to fire");
      const hint = is_still ? `Press Play, or a key: ${words}.` : "";
      this.say(`${texts[this.who]} ${hint}`.trim());
      if (this.noted.textContent !== this.note) this.noted.textContent = this.note;
    }

    // ---- drawing

    tick(now) {
      const wait = 1000 / this.speed.value;
      if (this.playing && this.dreamer && (this.who !== "replay" || this.film) && now >= this.due) {
        // What a busy machine missed is not caught up with.
        this.due = Math.max(this.due + wait, now - wait);
        this.advance();
        const gap = now - (this.last_shown ?? now);
        this.last_shown = now;
        if (gap) this.timing.shown += (gap - this.timing.shown) * (this.timing.shown ? 0.05 : 1);
        this.draw();
      } else if (!this.playing) {
        this.last_shown = undefined;
      }
      requestAnimationFrame((next) => this.tick(next));
    }

    draw() {
      if (!this.dreamer) return;
      const shown = this.who === "replay" ? 2 : 1;
      const room = this.root.clientWidth - (shown - 1) * 10;
      const scale = Math.max(1, Math.min(4, Math.floor(room / shown / HD.SIDE)));
      for (const canvas of [this.dreamed, this.real]) canvas.style.width = `${scale * HD.SIDE}px`;
      this.paint(this.dreamed, this.frame);
      if (this.film) this.paint(this.real, this.film[Math.min(this.step, this.film.length - 1)]);
      this.draw_levels();
      this.draw_trace();
      if (shown === 2) this.draw_drift();
      this.write_readings();
    }

    paint(canvas, frame) {
      const picture = new ImageData(HD.SIDE, HD.SIDE);
      frame.forEach((grey, i) => picture.data.set([grey, grey, grey, 255], 4 * i));
      canvas.getContext("2d").putImageData(picture, 0, 0);
    }

    write_readings() {
      const { legal, meanings } = this.agent.dream, is_replay = this.who === "replay";
      const really = this.start.rewards.slice(0, this.step).map(Math.sign);
      this.stepShown.textContent = this.step;
      this.rewardShown.textContent = signed(this.reward, 2);
      this.pointsShown.textContent = signed(this.points, 1);
      this.realShown.textContent = signed(really.reduce((sum, sign) => sum + sign, 0), 0);
      this.realShown.hidden = this.realShown.previousElementSibling.hidden = !is_replay;
      this.valueShown.textContent =
        this.value === null ? "not in these weights" : signed(this.value, 2);
      this.goesOnShown.textContent = this.goes_on.toFixed(3);
      this.choice.replaceChildren();
      legal.forEach((action, k) => {
        const done = this.action === action ? "done" : "";
        make("span", this.choice, { className: done, textContent: meanings[action].toLowerCase() });
        make("i", this.choice).style.width = `${100 * this.shares[k]}%`;
      });
      this.write_measured();
    }

    write_measured() {
      const { model, shown } = this.timing, error = this.checked?.toExponential(0);
      const speed = model ? `In this browser a step of the dream takes ${model.toFixed(1)} ms: `
        + `${Math.round(1000 / model)} steps a second would be possible`
        + `${shown ? `, ${Math.round(1000 / shown)} are shown` : ""}.`
        : "The speed is shown once the dream runs.";
      const exact = error ? `At the ${this.agent.dream.starts.length} starts the outputs of world `
        + `model and policy differ from PyTorch's by at most ${error}.` : "";
      this.measured.textContent = `${speed} ${exact}`;
    }

    show_levels({ num_levels, patch }) {
      this.levels.replaceChildren();
      this.grids = Array.from({ length: num_levels }, (_, level) => {
        const place = make("div", this.levels), canvas = make("canvas", place);
        const grade = level === 0 ? ", coarse" : level === num_levels - 1 ? ", fine" : "";
        make("p", place, { className: "small", textContent: `level ${level}${grade}` });
        return canvas;
      });
      this.grid = HD.SIDE / patch;
      this.levels.title = `The codes of ${this.grid} × ${this.grid} places, ${patch} × ${patch} `
        + "pixels each. What changed lights up; an empty place is code 0, the background.";
    }

    draw_levels() {
      this.grids.forEach((canvas, level) => {
        const { context, width, colour } = this.drawing(canvas, canvas.clientWidth);
        const cell = width / this.grid;
        context.textAlign = "center";
        context.textBaseline = "middle";
        context.font = `${Math.min(12, cell * 0.45)}px system-ui, sans-serif`;
        for (let g = 0; g < this.grid ** 2; g++) {
          const i = level * this.grid ** 2 + g, code = this.dreamer.tokens[i];
          const x = (g % this.grid) * cell, y = Math.floor(g / this.grid) * cell;
          const age = this.step - (this.changed_at.get(i) ?? -Infinity);
          context.globalAlpha = age < FADE ? 1 - age / FADE : 0;
          context.fillStyle = colour("glow");
          context.fillRect(x, y, cell, cell);
          context.globalAlpha = 1;
          context.strokeStyle = colour("line");
          context.strokeRect(x + 0.5, y + 0.5, cell - 1, cell - 1);
          context.fillStyle = colour(age < FADE / 2 ? "on-glow" : "ink");
          if (code) context.fillText(code, x + cell / 2, y + cell / 2);
        }
      });
    }

    /** A canvas as wide as its place, in CSS pixels, and colours of the page by name. */
    drawing(canvas, height) {
      const width = canvas.clientWidth, sharp = devicePixelRatio || 1;
      const style = getComputedStyle(this.root);
      canvas.width = width * sharp;
      canvas.height = height * sharp;
      canvas.style.height = `${height}px`;
      const context = canvas.getContext("2d");
      context.scale(sharp, sharp);
      context.font = "12px system-ui, sans-serif";
      return { context, width, colour: (name) => style.getPropertyValue(`--${name}`) };
    }

    /** Lines over steps: {name: values} in the colours of kinds [name, colour, text], between low
        and high; from: the step at the left edge, of num_steps to the right one. */
    draw_lines(canvas, series, kinds, { height, low, high, from, num_steps }) {
      const { context, width, colour } = this.drawing(canvas, height), left = 34, right = width - 8;
      const x = (t) => left + (right - left) * (t - from) / num_steps;
      const y = (value) => height - 18 - (height - 38) * (value - low) / (high - low);
      const write = (text, at, line) => context.fillText(text, at, line);
      context.fillStyle = colour("soft");
      context.fillRect(left, y(0), right - left, 1);
      context.textAlign = "right";
      [0, low, high].filter((value) => !value || Math.abs(y(value) - y(0)) > 12)
        .forEach((value) => write(value.toFixed(1), left - 4, y(value) + 4));
      write(`step ${from + num_steps}`, right, height - 3);
      context.textAlign = "left";
      write(`step ${from}`, left, height - 3);
      let at = left;
      for (const [name, hue, text] of kinds) {
        context.strokeStyle = context.fillStyle = colour(hue);
        context.lineWidth = hue === "dream" ? 2.5 : 1.5;
        context.beginPath();
        series[name].forEach((value, t) => { if (t >= from) context.lineTo(x(t + 1), y(value)); });
        context.stroke();
        write(text, at, 12);
        at += context.measureText(text).width + 16;
      }
    }

    draw_drift() {
      const high = Math.max(0.1, ...Object.values(this.differences).flat());
      this.draw_lines(this.chart, this.differences, [["empty", "empty", "background alone"],
        ["still", "still", "first frame kept"], ["dream", "dream", "dream"]],
      { height: 160, low: 0, high, from: 0, num_steps: this.start.actions.length });
    }

    draw_trace() {
      const from = Math.max(0, this.step - TRACED), values = this.traced.value.slice(from);
      const high = Math.max(1, ...values), low = Math.min(-1, ...values);
      const kinds = [["reward", "still", "predicted reward"], ["value", "dream", "value"]];
      this.draw_lines(this.trace, this.traced, kinds.slice(0, this.value === null ? 1 : 2),
        { height: 110, low, high, from, num_steps: TRACED });
    }

    show_origin() {
      const { made_by: by, title, starts_from: from } = this.agent.dream;
      this.origin.textContent = `${title}: the agent of profile ${by.profile}, variant `
        + `${by.variant}, seed ${by.seed}, after ${by.steps.toLocaleString("en")} steps of the `
        + `real game, trained at commit ${(by.commit ?? "unknown").slice(0, 10)} (run `
        + `${by.identity.slice(0, 10)}). ${from}`;
    }
  }

  return new Player(document.getElementById("dream"));
})();
