"use strict";
/* The agent of hd/agent.py in plain JavaScript, to be read beside hd/patches.py, hd/place_model.py,
   hd/policy.py and hd/two_hot.py: classes and functions have the same names and do the same to one
   state instead of a batch. Arrays are flat; shapes in comments are as in Python without the batch:
   T steps, L levels, K codes, G places, W numbers at each place. */

const HD = (() => {
  const SIDE = 84; // of a frame, in pixels
  const WAVES = 6;
  const SIGNS = [-1, 0, 1];

  // ---- what PyTorch brings

  /** rows of x (N, in) -> (N, out): x weight^T + bias, weight (out, in). */
  function linear(x, weight, bias) {
    const out = weight.shape[0], width = weight.shape[1], count = x.length / width;
    const w = weight.data, y = new Float32Array(count * out);
    for (let n = 0; n < count; n++) {
      const from = n * width;
      for (let o = 0; o < out; o++) {
        const row = o * width;
        let sum = bias ? bias.data[o] : 0;
        for (let i = 0; i < width; i++) sum += w[row + i] * x[from + i];
        y[n * out + o] = sum;
      }
    }
    return y;
  }

  /** Each row of x (N, width) to mean 0 and variance 1, times weight plus bias. */
  function layer_norm(x, weight, bias) {
    const width = weight.data.length, y = new Float32Array(x.length);
    for (let from = 0; from < x.length; from += width) {
      let mean = 0, variance = 0;
      for (let i = 0; i < width; i++) mean += x[from + i];
      mean /= width;
      for (let i = 0; i < width; i++) variance += (x[from + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(variance / width + 1e-5);
      for (let i = 0; i < width; i++) {
        y[from + i] = (x[from + i] - mean) * scale * weight.data[i] + bias.data[i];
      }
    }
    return y;
  }

  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const silu = (x) => x.map((value) => value * sigmoid(value));

  function softmax(logits, temperature = 1) {
    const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const shares = Float64Array.from(logits, (value) => Math.exp((value - top) / temperature));
    const total = shares.reduce((a, b) => a + b, 0);
    return shares.map((share) => share / total);
  }

  /** The index of one share, each with the probability that it states. */
  function draw(shares, random) {
    let left = random() * shares.reduce((a, b) => a + b, 0), last = 0;
    for (let k = 0; k < shares.length; k++) {
      if (!shares[k]) continue;
      last = k;
      left -= shares[k];
      if (left < 0) break;
    }
    return last;
  }

  const argmax = (values) =>
    values.reduce((best, value, k) => (value > values[best] ? k : best), 0);

  // ---- weights

  const HALF = new Float32Array(65536); // every half-precision number
  for (let bits = 0; bits < HALF.length; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
    HALF[bits] = sign * (exponent === 31 ? (fraction ? NaN : Infinity)
      : exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }

  const SCALE = ":scale"; // ends the name of what each row of what is kept in bytes is multiplied by
  const KINDS = { // bytes of a number, and the number
    int8: [1, (view) => view.getInt8(0)],
    float16: [2, (view) => HALF[view.getUint16(0, true)]],
    float32: [4, (view) => view.getFloat32(0, true)],
  };

  /** What hd.book.dream_page.write wrote -> name -> {data: Float32Array, shape}. */
  async function read(dream) {
    const packed = Uint8Array.from(atob(dream.bytes), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const tensors = {};
    let at = 0;
    for (const { name, shape, kind } of dream.tensors) {
      const count = shape.reduce((a, b) => a * b, 1), [size, value] = KINDS[kind];
      const number = new Uint8Array(size), view = new DataView(number.buffer);
      const data = new Float32Array(count);
      for (let i = 0; i < count; i++) {
        for (let plane = 0; plane < size; plane++) number[plane] = bytes[at + plane * count + i];
        data[i] = value(view);
      }
      tensors[name] = { data, shape };
      at += size * count;
    }
    for (const [name, scale] of Object.entries(tensors)) {
      if (!name.endsWith(SCALE)) continue;
      const { data, shape } = tensors[name.slice(0, -SCALE.length)];
      const row = data.length / shape[0];
      for (let i = 0; i < data.length; i++) data[i] *= scale.data[Math.floor(i / row)];
    }
    return tensors;
  }

  /** The tensors whose names begin so, without that beginning. */
  const below = (tensors, prefix) => Object.fromEntries(Object.entries(tensors)
    .filter(([name]) => name.startsWith(prefix))
    .map(([name, tensor]) => [name.slice(prefix.length), tensor]));

  // ---- hd/patches.py

  class PatchCodec {
    constructor(cfg, tensors) {
      this.patch = cfg.patch;
      this.num_places = (SIDE / cfg.patch) ** 2;
      this.codebooks = tensors["quantizer.codebooks"];
      this.background = tensors.background;
    }

    /** tokens (L, G) -> a frame (84, 84) uint8. */
    decode(tokens) {
      const [L, K, P] = this.codebooks.shape, books = this.codebooks.data;
      const grid = SIDE / this.patch, frame = Float64Array.from(this.background.data);
      for (let g = 0; g < this.num_places; g++) {
        const corner = Math.floor(g / grid) * this.patch * SIDE + (g % grid) * this.patch;
        for (let level = 0; level < L; level++) {
          const from = (level * K + tokens[level * this.num_places + g]) * P;
          for (let p = 0; p < P; p++) {
            frame[corner + Math.floor(p / this.patch) * SIDE + (p % this.patch)] += books[from + p];
          }
        }
      }
      return Uint8ClampedArray.from(frame, (value) => 255 * value);
    }
  }

  // ---- hd/place_model.py

  class PlaceModel {
    constructor(cfg, tensors, codebooks) {
      this.cfg = cfg;
      this.tensors = tensors;
      [this.num_levels, this.num_codes, this.patch] = codebooks.shape;
      this.grid = Math.round(Math.sqrt(tensors["outcome_head.0.weight"].shape[1] / 8));
      this.num_places = this.grid ** 2;
      this.read_codebooks(codebooks);
      const blocks = (prefix) => Array.from({ length: cfg.num_blocks }, (_, i) =>
        new Block(below(tensors, `${prefix}.${i}.`), this.grid));
      this.seen = blocks("seen");
      this.acted = blocks("acted");
    }

    linear(name, x) {
      return linear(x, this.tensors[`${name}.weight`], this.tensors[`${name}.bias`]);
    }

    /** Every level scaled to a mean square of 1. */
    read_codebooks({ data, shape }) {
      const size = shape[1] * shape[2], scaled = new Float32Array(data.length);
      for (let level = 0; level < shape[0]; level++) {
        let squares = 0;
        for (let i = level * size; i < (level + 1) * size; i++) squares += data[i] ** 2;
        const scale = 1 / Math.max(Math.sqrt(squares / size), 1e-6);
        for (let i = level * size; i < (level + 1) * size; i++) scaled[i] = data[i] * scale;
      }
      this.codebooks = { data: scaled, shape };
    }

    /** (L K, E): what each code of each level is read as. */
    tables() {
      const projected = this.linear("code_projection", this.codebooks.data);
      return projected.map((value, i) => value + this.tensors.code_embedding.data[i]);
    }

    /** tokens (L, G) -> (G, E): the sum over levels. */
    embed(tokens, tables) {
      const E = this.cfg.code_width, embedded = new Float32Array(this.num_places * E);
      for (let level = 0; level < this.num_levels; level++) {
        for (let g = 0; g < this.num_places; g++) {
          const from = (level * this.num_codes + tokens[level * this.num_places + g]) * E;
          for (let i = 0; i < E; i++) embedded[g * E + i] += tables[from + i];
        }
      }
      return embedded;
    }

    /** (G, 2 + 4 WAVES): where each place stands in the frame. */
    places() {
      const centre = (k) => 2 * ((k + 0.5) / this.grid) - 1, rows = [];
      for (let g = 0; g < this.num_places; g++) {
        const at = [centre(Math.floor(g / this.grid)), centre(g % this.grid)];
        const waves = at.flatMap((x) => Array.from({ length: WAVES },
          (_, k) => x * (Math.PI / 2) * 2 ** k));
        rows.push(...at, ...waves.map(Math.sin), ...waves.map(Math.cos));
      }
      return Float32Array.from(rows);
    }

    /** embedded: T arrays (G, E), oldest first; actions (T-1,) between them -> (G, W). */
    state(embedded, actions, places) {
      const E = this.cfg.code_width, T = this.cfg.steps, G = this.num_places;
      const past = new Float32Array((T - 1) * this.cfg.num_actions);
      actions.forEach((action, t) => { past[t * this.cfg.num_actions + action] = 1; });
      const together = new Float32Array(G * T * E);
      for (let g = 0; g < G; g++) {
        for (let t = 0; t < T; t++) {
          together.set(embedded[t].subarray(g * E, (g + 1) * E), (g * T + t) * E);
        }
      }
      let x = this.linear("inputs", together);
      const at = this.linear("place_input", places), before = this.linear("past_actions", past);
      x = x.map((value, i) => value + at[i] + before[i % before.length]);
      for (const block of this.seen) x = block.forward(x);
      return this.norm("seen_norm", x);
    }

    norm(name, x) {
      return layer_norm(x, this.tensors[`${name}.weight`], this.tensors[`${name}.bias`]);
    }

    /** state (G, W), an action -> (G, W): what is known of the next step. */
    act(state, action) {
      const W = this.cfg.width, made = this.tensors["action.weight"].data;
      const scale = action * 2 * W, shift = scale + W;
      let x = state.map((value, i) => value * (1 + made[scale + (i % W)]) + made[shift + (i % W)]);
      for (const block of this.acted) x = block.forward(x);
      return this.norm("acted_norm", x);
    }

    /** (G,) logits. */
    change(acted) {
      return this.linear("change", acted);
    }

    /** The reward's sign as logits [3], and the continue logit. */
    outcome(acted) {
      const hidden = silu(this.linear("outcome_head.0", this.linear("summary", acted)));
      const out = this.linear("outcome_head.2", hidden);
      return [out.subarray(0, SIGNS.length), out[SIGNS.length]];
    }

    /** at (W,) of one changing place, coarser: its codes of the levels before -> (K,). */
    code_logits(level, at, coarser, tables, keys) {
      const E = this.cfg.code_width, K = this.num_codes;
      if (level) {
        const sum = new Float32Array(E);
        coarser.forEach((code, l) => {
          for (let i = 0; i < E; i++) sum[i] += tables[(l * K + code) * E + i];
        });
        const known = this.linear("coarser", sum);
        at = at.map((value, i) => value + known[i]);
      }
      const query = this.linear(`queries.${level}.2`, silu(this.linear(`queries.${level}.0`, at)));
      const bias = this.tensors.code_bias.data.subarray(level * K, (level + 1) * K);
      return linear(query, { data: keys[level], shape: [K, E] }, { data: bias });
    }

    /** Of each level (K, E): what a code is recognised by. */
    keys() {
      const size = this.num_codes * this.patch, E = this.cfg.code_width;
      return Array.from({ length: this.num_levels }, (_, level) => {
        const book = this.codebooks.data.subarray(level * size, (level + 1) * size);
        const own = this.tensors.key_embedding.data.subarray(level * this.num_codes * E);
        return this.linear(`key_projections.${level}`, book).map((value, i) => value + own[i]);
      });
    }

    /** acted (G, W) at one place -> (W,). */
    at_place(acted, place, places) {
      const width = places.length / this.num_places, W = this.cfg.width;
      const query = this.linear("place_query", places.subarray(place * width, (place + 1) * width));
      return query.map((value, i) => value + acted[place * W + i]);
    }
  }

  class PlaceDreamer {
    /** tokens: the last T steps (L, G) each; actions: the T-1 between them. */
    constructor(model, tokens, actions) {
      this.model = model;
      this.tokens = tokens[tokens.length - 1];
      this.tables = model.tables();
      this.keys = model.keys();
      this.places = model.places();
      this.embedded = tokens.map((each) => model.embed(each, this.tables));
      this.actions = [...actions];
      this.state = model.state(this.embedded, this.actions, this.places);
    }

    /** (G W,): what the policy sees of the step the dream stands at. */
    features() {
      return this.state;
    }

    /** An action -> expected sign of the reward, continue probability; this.tokens is the next
        step, drawn with random(), or the most likely; this.changes says where it may differ. */
    step(action, random, greedy = false) {
      const model = this.model, temperature = model.cfg.temperature;
      const acted = model.act(this.state, action);
      const chance = model.change(acted).map((logit) => sigmoid(logit / temperature));
      this.changes = Array.from(chance, (share) => (greedy ? 0.5 : random()) < share);
      this.tokens = this.tokens.slice();
      this.changes.forEach((changes, place) => {
        if (changes) this.new_codes(acted, place, random, greedy);
      });
      const [signs, going_on] = model.outcome(acted);
      this.embedded = [...this.embedded.slice(1), model.embed(this.tokens, this.tables)];
      this.actions = [...this.actions, action].slice(1);
      this.state = model.state(this.embedded, this.actions, this.places);
      const reward = softmax(signs).reduce((sum, share, k) => sum + share * SIGNS[k], 0);
      return [reward, sigmoid(going_on)];
    }

    /** The codes of one place that changes, level by level, into this.tokens. */
    new_codes(acted, place, random, greedy) {
      const model = this.model, at = model.at_place(acted, place, this.places), codes = [];
      for (let level = 0; level < model.num_levels; level++) {
        const logits = model.code_logits(level, at, codes, this.tables, this.keys);
        codes.push(greedy ? argmax(logits) : draw(softmax(logits, model.cfg.temperature), random));
        this.tokens[level * model.num_places + place] = codes[level];
      }
    }
  }

  /** x + two 3 x 3 convolutions over the grid; a global one has an overview. */
  class Block {
    constructor(tensors, grid) {
      this.tensors = tensors;
      this.grid = grid;
      // (out, in, 3, 3) -> (3 3, in, out): the innermost loop runs along neighbouring numbers.
      this.kernels = Object.fromEntries(["first", "second"].map((name) => {
        const { data, shape: [out, width] } = tensors[`${name}.weight`];
        const kernel = new Float32Array(data.length);
        for (let o = 0; o < out; o++) {
          for (let i = 0; i < width; i++) {
            for (let k = 0; k < 9; k++) {
              kernel[(k * width + i) * out + o] = data[(o * width + i) * 9 + k];
            }
          }
        }
        return [name, kernel];
      }));
    }

    /** (G, W) -> (G, W). */
    forward(x) {
      const t = this.tensors, width = t["norm.weight"].data.length, count = x.length / width;
      const y = this.convolve("first", layer_norm(x, t["norm.weight"], t["norm.bias"]), width);
      if (t["overview.weight"]) {
        const seen = new Float32Array(2 * width);
        for (let i = 0; i < width; i++) {
          let sum = 0, top = -Infinity;
          for (let g = 0; g < count; g++) {
            sum += y[g * width + i];
            top = Math.max(top, y[g * width + i]);
          }
          seen[i] = sum / count;
          seen[width + i] = top;
        }
        const shown = linear(seen, t["overview.weight"], t["overview.bias"]);
        for (let i = 0; i < y.length; i++) y[i] += shown[i % width];
      }
      const z = this.convolve("second", silu(y), width);
      return x.map((value, i) => value + z[i]);
    }

    convolve(name, x, width) {
      const kernel = this.kernels[name], bias = this.tensors[`${name}.bias`].data, grid = this.grid;
      const y = new Float32Array(x.length);
      for (let row = 0; row < grid; row++) {
        for (let column = 0; column < grid; column++) {
          const to = (row * grid + column) * width;
          y.set(bias, to);
          for (let k = 0; k < 9; k++) {
            const r = row + Math.floor(k / 3) - 1, c = column + (k % 3) - 1;
            if (r < 0 || r >= grid || c < 0 || c >= grid) continue;
            const from = (r * grid + c) * width;
            for (let i = 0; i < width; i++) {
              const value = x[from + i], weights = (k * width + i) * width;
              for (let o = 0; o < width; o++) y[to + o] += value * kernel[weights + o];
            }
          }
        }
      }
      return y;
    }
  }

  // ---- hd/policy.py and hd/two_hot.py

  /** Features (G W,) -> (out,). */
  function mlp(tensors, features) {
    const apply = (kind, at, x) => kind(x, tensors[`${at}.weight`], tensors[`${at}.bias`]);
    let x = apply(layer_norm, 3, apply(linear, 1, features));
    x = silu(apply(layer_norm, 5, apply(linear, 4, x)));
    x = silu(apply(layer_norm, 8, apply(linear, 7, x)));
    return apply(linear, 10, x);
  }

  class ActorCritic {
    constructor(cfg, tensors, legal) {
      this.cfg = cfg;
      this.legal = legal;
      [this.actor_layers, this.critic_layers] = ["actor", "critic"].map((name) =>
        below(tensors, `${name}.layers.`));
    }

    /** Features -> the probability of each legal action, in the order of this.legal. */
    actor(features) {
      const logits = mlp(this.actor_layers, features), mix = this.cfg.uniform_mix;
      const shares = softmax(this.legal.map((action) => logits[action]));
      return shares.map((share) => (1 - mix) * share + mix / this.legal.length);
    }

    act(features, random) {
      return this.legal[draw(this.actor(features), random)];
    }

    /** Features -> the value: discounted signs of points to come. */
    critic(features) {
      const out = mlp(this.critic_layers, features);
      return this.cfg.critic === "two_hot" ? two_hot(out) : out[0];
    }
  }

  function two_hot(logits, limit = 10) {
    const step = 2 * limit / (logits.length - 1);
    return softmax(logits).reduce((sum, share, k) => {
      const bin = k * step - limit;
      return sum + share * Math.sign(bin) * Math.expm1(Math.abs(bin));
    }, 0);
  }

  // ---- the whole agent

  class Agent {
    /** dream: what a script of hd.book.dream_page holds. */
    static async read(dream) {
      return new Agent(dream, await read(dream));
    }

    constructor(dream, tensors) {
      this.dream = dream;
      this.tensors = tensors;
      this.codec = new PatchCodec(dream.config.agent, below(tensors, "codec."));
      this.model = new PlaceModel(dream.config.place_model, below(tensors, "model."),
        this.codec.codebooks);
      this.policy = new ActorCritic(dream.config.agent_policy, below(tensors, "policy."),
        dream.legal);
    }

    dreamer(start) {
      return new PlaceDreamer(this.model, start.tokens.map((step) => Int32Array.from(step.flat())),
        start.past);
    }

    /** What hd.book.dream_page.cases_of had PyTorch compute at each start, computed here. */
    cases() {
      return this.dream.starts.map((start, n) => {
        const { place, codes } = this.dream.cases[n], dreamer = this.dreamer(start);
        const model = this.model, acted = model.act(dreamer.state, start.actions[0]);
        const at = model.at_place(acted, place, dreamer.places);
        const [signs, going_on] = model.outcome(acted), seen = dreamer.features();
        return {
          change: [...model.change(acted)],
          codes: codes.flatMap((_, level) => [...model.code_logits(
            level, at, codes.slice(0, level), dreamer.tables, dreamer.keys)]),
          outcome: [...signs, going_on],
          actor: [...this.policy.actor(seen)].map(Math.log),
          value: this.dream.has_critic ? [this.policy.critic(seen)] : [],
        };
      });
    }

    /** The largest difference between these numbers and PyTorch's, over all starts. */
    error() {
      let largest = 0;
      this.cases().forEach((found, n) => {
        for (const [name, values] of Object.entries(found)) {
          values.forEach((value, i) => {
            const wanted = this.tensors[`case.${name}`].data[n * values.length + i];
            if (!(Math.abs(value - wanted) <= largest)) largest = Math.abs(value - wanted);
          });
        }
      });
      return largest;
    }
  }

  return { Agent, PatchCodec, PlaceModel, PlaceDreamer, ActorCritic, SIDE };
})();
