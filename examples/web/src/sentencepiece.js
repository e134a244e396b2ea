/** Runs of text to the pieces of a sentencepiece unigram model, each with the characters that it came from. */

import { ErnieMError } from './errors.js';

export const WORD_START = '▁';

const UNKNOWN_PENALTY = 10;
const LONE_SURROGATE = /\p{Surrogate}/gu;
// Kinds of pieces and of models, as model files number them.
const [NORMAL, USER_DEFINED, BYTE] = [1, 4, 6];
const UNIGRAM = 1;
const utf8 = new TextEncoder();
const fromUtf8 = new TextDecoder('utf-8', { ignoreBOM: true });

/**
 * A run as the model normalizes it.
 * @typedef {object} Normalized
 * @property {string[]} chars One string per code point.
 * @property {number[]} origins Where in the run (UTF-16 index) the characters begin that became each of `chars`; at the
 *   end, where what became them ends.
 */

/**
 * A piece, and its range in `chars` of what it was cut from.
 * @typedef {{piece: string, start: number, end: number}} Piece
 */

export class SentencePieceModel {
  /** @param {Uint8Array} file The content of `sentencepiece.bpe.model`. @param {string} name Its name, for errors. */
  constructor(file, name = 'sentencepiece.bpe.model') {
    const model = readModel(file, name);
    /** Every piece, by id. */
    this.pieces = model.pieces.map(({ piece }) => piece);
    const normal = model.pieces.filter(({ type }) => type === NORMAL);
    this._scores = new Map(normal.map(({ piece, score }) => [piece, score]));
    /** The size in code points of the longest piece that begins with a character. @type {Map<string, number>} */
    this._longest = new Map();
    for (const { piece } of normal) {
      const chars = [...piece];
      this._longest.set(chars[0], Math.max(this._longest.get(chars[0]) ?? 0, chars.length));
    }
    const lowest = normal.reduce((least, { score }) => Math.min(least, score), Infinity);
    this._unknownScore = Math.fround(lowest - UNKNOWN_PENALTY);
    this._rules = new CharacterRules(model.charsmap);
  }

  /**
   * NFKC, control characters and whitespace, as the model's own table has them. Lone surrogates are read as U+FFFD.
   * @param {string} run
   * @returns {Normalized}
   */
  normalize(run) {
    const text = run.replace(LONE_SURROGATE, '\ufffd');
    const bytes = utf8.encode(text);
    /** @type {string[]} */
    const chars = [];
    /** @type {number[]} */
    const origins = [];
    let isAfterSpace = true;
    let origin = 0; // in UTF-16 units
    for (let at = 0; at < bytes.length;) {
      const rule = this._rules.longest(bytes, at);
      const found = rule?.text ?? String.fromCodePoint(/** @type {number} */ (text.codePointAt(origin)));
      const size = rule?.size ?? charSize(bytes[at]);
      if (!chars.length && found !== ' ') {
        chars.push(WORD_START);
        origins.push(origin);
      }
      /** @type {string} */
      const kept = isAfterSpace ? found.replace(/^ +/, '') : found;
      for (const char of kept) {
        chars.push(char === ' ' ? WORD_START : char);
        origins.push(origin);
      }
      if (kept) isAfterSpace = kept.endsWith(' ');
      origin += unitsOf(bytes, at, size);
      at += size;
    }
    while (chars.at(-1) === WORD_START) {
      chars.pop();
      origin = /** @type {number} */ (origins.pop());
    }
    return { chars, origins: [...origins, origin] };
  }

  /**
   * The most probable pieces of a normalized run; neighbours that the model does not know are one piece.
   * @param {string[]} chars
   * @returns {Piece[]}
   */
  cut(chars) {
    const best = new Float32Array(chars.length + 1);
    const from = new Int32Array(chars.length + 1).fill(-1);
    const isKnown = new Uint8Array(chars.length + 1);
    /** @type {(start: number, end: number, score: number, known: number) => void} */
    const offer = (start, end, score, known) => {
      const total = Math.fround(best[start] + score); // sentencepiece's sums are in float32, which decides ties
      if (from[end] >= 0 && total <= best[end]) return;
      best[end] = total;
      from[end] = start;
      isKnown[end] = known;
    };
    const text = chars.join('');
    const places = placesOf(chars);
    for (let start = 0; start < chars.length; start++) {
      let hasOwn = false; // whether the model knows this character alone
      const last = Math.min(start + (this._longest.get(chars[start]) ?? 0), chars.length);
      for (let end = start + 1; end <= last; end++) {
        const score = this._scores.get(text.slice(places[start], places[end]));
        if (score === undefined) continue;
        offer(start, end, score, 1);
        hasOwn ||= end === start + 1;
      }
      if (!hasOwn) offer(start, start + 1, this._unknownScore, 0);
    }
    /** @type {Piece[]} */
    const pieces = [];
    for (let end = chars.length, start; end > 0; end = start) {
      start = from[end];
      while (!isKnown[end] && start > 0 && !isKnown[start]) start = from[start];
      pieces.push({ piece: text.slice(places[start], places[end]), start, end });
    }
    return pieces.reverse();
  }
}

/** The model's table of character rules: a double array of UTF-8 prefixes (darts), and the texts to put for them. */
class CharacterRules {
  /** @param {Uint8Array} charsmap The size of the double array, the double array, texts that end with NUL. */
  constructor(charsmap) {
    const size = charsmap.length ? new DataView(charsmap.buffer, charsmap.byteOffset).getUint32(0, true) : 0;
    this._units = new Uint32Array(charsmap.slice(4, 4 + size).buffer);
    this._texts = charsmap.subarray(4 + size);
    /** @type {Map<number, string>} */
    this._read = new Map();
  }

  /**
   * What the longest rule for the text at `start` puts, and how many bytes that replaces; undefined if there is none.
   * @param {Uint8Array} bytes
   * @param {number} start
   */
  longest(bytes, start) {
    const units = this._units;
    if (!units.length) return undefined;
    let size = 0;
    let value = 0;
    for (let at = start, node = offsetOf(units[0]); at < bytes.length;) {
      node ^= bytes[at];
      const unit = units[node];
      if ((unit & 0x800000ff) !== bytes[at]) break;
      node ^= offsetOf(unit);
      at++;
      if (unit & 0x100) [size, value] = [at - start, units[node] & 0x7fffffff];
    }
    return size ? { text: this._text(value), size } : undefined;
  }

  /** @param {number} start */
  _text(start) {
    let text = this._read.get(start);
    if (text === undefined) {
      text = fromUtf8.decode(this._texts.subarray(start, this._texts.indexOf(0, start)));
      this._read.set(start, text);
    }
    return text;
  }
}

/** @param {number} unit Of the double array. */
const offsetOf = (unit) => (unit >>> 10) << ((unit & 0x200) >>> 6);

/** @param {number} first The first byte of a character. */
const charSize = (first) => (first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4);

/** Where each character begins in their text, in UTF-16 units; at the end, its length. @param {string[]} chars */
function placesOf(chars) {
  const places = new Uint32Array(chars.length + 1);
  for (const [i, char] of chars.entries()) places[i + 1] = places[i] + char.length;
  return places;
}

/**
 * How many UTF-16 units some bytes of UTF-8 take.
 * @param {Uint8Array} bytes
 * @param {number} start
 * @param {number} size
 */
function unitsOf(bytes, start, size) {
  let units = 0;
  for (let at = start; at < start + size; at += charSize(bytes[at])) units += bytes[at] < 0xf0 ? 1 : 2;
  return units;
}

/**
 * The parts of a model file that matter here, checked.
 * @param {Uint8Array} file
 * @param {string} name
 */
function readModel(file, name) {
  /** @type {{piece: string, score: number, type: number}[]} */
  const pieces = [];
  let charsmap = new Uint8Array();
  let isPlain = true; // what ErnieM's models all have
  try {
    for (const { field, bytes } of fieldsOf(file)) {
      if (field === 1) pieces.push(readPiece(bytes));
      for (const inner of field === 2 ? fieldsOf(bytes) : []) {
        if (inner.field === 3) isPlain &&= inner.number === UNIGRAM;
        if (inner.field === 24 || inner.field === 35) isPlain &&= inner.number === 0; // marks as suffix, byte fallback
      }
      for (const inner of field === 3 ? fieldsOf(bytes) : []) {
        if (inner.field === 2) charsmap = inner.bytes;
        if (inner.field >= 3 && inner.field <= 5) isPlain &&= inner.number === 1; // first mark, spaces removed, escaped
      }
    }
  } catch (error) {
    throw new ErnieMError(
      `${name} is not a readable sentencepiece model: ${error instanceof Error ? error.message : error}`,
    );
  }
  if (!pieces.some(({ type }) => type === NORMAL))
    throw new ErnieMError(`${name} is not a sentencepiece model: it holds no pieces.`);
  if (!isPlain || pieces.some(({ type }) => type === USER_DEFINED || type === BYTE)) {
    throw new ErnieMError(
      `${name} is not a sentencepiece model as ErnieM has them: expected a unigram model without byte fallback and ` +
        'user-defined pieces that removes extra spaces and marks the start of words.',
    );
  }
  return { pieces, charsmap };
}

/** @param {Uint8Array} message */
function readPiece(message) {
  const piece = { piece: '', score: 0, type: NORMAL };
  for (const { field, bytes, number } of fieldsOf(message)) {
    if (field === 1) piece.piece = fromUtf8.decode(bytes);
    if (field === 2) piece.score = new DataView(bytes.buffer, bytes.byteOffset).getFloat32(0, true);
    if (field === 3) piece.type = number;
  }
  return piece;
}

/**
 * The fields of a protobuf message: integers as `number`, all others as `bytes`.
 * @param {Uint8Array} message
 * @returns {Generator<{field: number, number: number, bytes: Uint8Array<ArrayBuffer>}>}
 */
function* fieldsOf(message) {
  let at = 0;
  const integer = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= message.length) throw new Error('it ends too early.');
      const byte = message[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const key = integer();
    const kind = key & 7;
    if (kind === 3 || kind === 4 || kind > 5) throw new Error(`it has a field of kind ${kind}.`);
    const number = kind === 0 || kind === 2 ? integer() : 0;
    const size = kind === 2 ? number : ({ 0: 0, 1: 8, 5: 4 }[kind] ?? 0);
    if (at + size > message.length) throw new Error('it ends too early.');
    yield { field: key >>> 3, number, bytes: /** @type {Uint8Array<ArrayBuffer>} */ (message.subarray(at, at + size)) };
    at += size;
  }
}
