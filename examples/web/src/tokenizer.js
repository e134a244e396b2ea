/** Text to rows of ids, with the ids and offsets of `erniem_rt.Tokenizer`. */

import { ErnieMError } from './errors.js';
import { SentencePieceModel, WORD_START } from './sentencepiece.js';

/**
 * A token outside the sentencepiece model: it is found in raw text.
 * @typedef {object} AddedToken
 * @property {string} content
 * @property {boolean} lstrip Whether it swallows the whitespace before it.
 * @property {boolean} rstrip Whether it swallows the whitespace after it.
 * @property {boolean} single_word Whether it is none inside a word.
 * @property {boolean} normalized Whether it may be lower-cased.
 * @property {boolean} special
 */

/**
 * The tokens of a text.
 * @typedef {object} Encoding
 * @property {number[]} ids
 * @property {[number, number][]} offsets Half-open ranges in UTF-16 units: `text.slice(start, end)`.
 */

/**
 * A stretch of text, and for each UTF-16 unit its index in the whole.
 * @typedef {{text: string, places: number[]}} Segment
 */

// transformers' order: tokens that the vocabulary lacks get their ids in it.
const NAMES = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];
const DEFAULTS = {
  unk_token: '[UNK]',
  sep_token: '[SEP]',
  pad_token: '[PAD]',
  cls_token: '[CLS]',
  mask_token: '[MASK]',
};
const CLASSES = ['ErnieMTokenizer', 'ErnieMTokenizerFast'];
const STANDS_ALONE = /^[\u4e00-\u9fff,;:.?!~，；：。？！《》【】]$/;
// Python's str.isdigit: decimal digits, and the others with the Unicode property "digit".
const DIGIT =
  /^[\p{Nd}²³¹⁰⁴-⁹₀-₉፩-፱᧚①-⑨⑴-⑼⒈-⒐⓪⓵-⓽⓿❶-❾➀-➈➊-➒\u{10a40}-\u{10a43}\u{10e60}-\u{10e68}\u{11052}-\u{1105a}\u{1f100}-\u{1f10a}]$/u;
// Python's str.isspace.
const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
const SPACES_BEFORE = new RegExp(`^${SPACE}+`);
const SPACES_AFTER = new RegExp(`${SPACE}+$`);

/** Without the whitespace at its ends, as Python's `str.strip`. @param {string} text */
export const strip = (text) => text.replace(SPACES_BEFORE, '').replace(SPACES_AFTER, '');

export class Tokenizer {
  /**
   * @param {Uint8Array} model The content of `sentencepiece.bpe.model`.
   * @param {string | undefined} vocabulary The content of `vocab.txt`; without it, the model's pieces in their order.
   * @param {Record<string, any>} [settings] As `settingsOf` gives them.
   */
  constructor(model, vocabulary, settings = {}) {
    this._model = new SentencePieceModel(model);
    const tokens = vocabulary === undefined ? this._model.pieces : linesOf(vocabulary);
    /** Which end of a text is cut off: "left" or "right". */
    this.truncationSide = settings.truncation_side ?? 'right';
    this._dropsLoneMarks = settings.drop_lone_marks === true;
    this._lowers = settings.do_lower_case === true;
    const named = specialTokens(settings);
    this._ids = new Map(tokens.map((token, id) => [token, id])); // of a token that is listed twice the last line counts
    /** @type {Map<string, AddedToken>} */
    this._added = new Map();
    this._addTokens(settings.added_tokens ?? new Map(), named.all);
    const idOf = (/** @type {string} */ name) => /** @type {number} */ (this._ids.get(named.byName[name].content));
    this.clsId = idOf('cls_token');
    this.sepId = idOf('sep_token');
    this._unknownId = idOf('unk_token');
    this._findsAdded = settings.split_special_tokens !== true;
    const kept = [...this._added.values()].filter((token) => token.normalized && !token.special);
    this._addedPattern = this._findsAdded ? anyOf([...this._added.keys()].sort(longestFirst)) : undefined;
    this._casePattern = anyOf([...named.all, ...kept].map(({ content }) => content));
    /** @type {Map<string, boolean>} */
    this._vanishing = new Map();
  }

  /**
   * The tokens of a text, without special tokens around them.
   * @param {string} text
   * @returns {Encoding}
   */
  encode(text) {
    const whole = this._lowers ? this._lowered(text) : undefined;
    /** @type {Encoding} */
    const found = { ids: [], offsets: [] };
    for (const segment of this._segments(whole?.text ?? text)) {
      for (const [token, start, end] of this._tokens(segment.text)) {
        const [first, last] = [segment.places[start], segment.places[end - 1]];
        found.ids.push(this._ids.get(token) ?? this._unknownId);
        found.offsets.push(whole ? [whole.starts[first], whole.ends[last]] : [first, last + 1]);
      }
    }
    return found;
  }

  /**
   * A row for the model: `[CLS] A [SEP]` or `[CLS] A [SEP] [SEP] B [SEP]`.
   * @param {number[]} first
   * @param {number[]} [second]
   */
  row(first, second) {
    const { clsId, sepId } = this;
    return second ? [clsId, ...first, sepId, sepId, ...second, sepId] : [clsId, ...first, sepId];
  }

  /**
   * What is left of a text, and of a second one, in `room` tokens: the longer one is cut first, then both alike.
   * @param {number} room
   * @param {number[]} first
   * @param {number[]} [second]
   * @returns {number[][]}
   */
  shortened(room, first, second) {
    if (!second) return [this.cut(first, room)];
    const excess = Math.max(first.length + second.length - room, 0);
    const level = Math.min(Math.abs(first.length - second.length), excess);
    const removed = Math.floor((excess - level) / 2) + (first.length > second.length ? level : 0);
    return [this.cut(first, first.length - removed), this.cut(second, second.length - (excess - removed))];
  }

  /** At most `size` of some ids. @param {number[]} ids @param {number} size */
  cut(ids, size) {
    return this.truncationSide === 'left' ? ids.slice(Math.max(ids.length - size, 0)) : ids.slice(0, size);
  }

  /**
   * Give added tokens their ids, and special ones that have none the next that are free.
   * @param {Map<number, AddedToken>} added
   * @param {AddedToken[]} special
   */
  _addTokens(added, special) {
    const tokens = new Map(added);
    const ids = new Map([...added].map(([id, { content }]) => [content, id]));
    for (const token of special) {
      const newer = [...ids.keys()].filter((content) => !this._ids.has(content)).length;
      const id = ids.get(token.content) ?? this._ids.get(token.content) ?? this._ids.size + newer;
      tokens.set(id, { ...token, special: true });
      ids.set(token.content, id);
    }
    for (const [id, token] of tokens) {
      this._ids.set(token.content, id);
      this._added.set(token.content, token);
    }
  }

  /** Added tokens and the runs between them, in order, without empty ones. @param {string} text @returns {Segment[]} */
  _segments(text) {
    const whole = { text, places: Array.from({ length: text.length }, (_, i) => i) };
    const segments = [];
    let at = 0;
    for (const match of this._addedPattern ? text.matchAll(this._addedPattern) : []) {
      if (match.index > at) segments.push(part(whole, at, match.index));
      at = match.index + match[0].length;
      segments.push(part(whole, match.index, at));
    }
    if (at < text.length) segments.push(part(whole, at, text.length));
    this._settleNeighbours(segments);
    return segments.filter((segment) => segment.text);
  }

  /**
   * Let each added token strip, or be merged into, the text beside it, in the reference's order of steps.
   * @param {Segment[]} segments
   */
  _settleNeighbours(segments) {
    for (let i = 0; i < segments.length; i++) {
      const segment = segments[i];
      const token = this._findsAdded ? this._added.get(segment.text) : undefined;
      if (!token) continue;
      const [left, right] = [segments[i - 1]?.text ?? '', segments[i + 1]?.text ?? ''];
      if (token.rstrip && right) segments[i + 1] = part(segments[i + 1], sizeOf(SPACES_BEFORE, right), right.length);
      if (token.lstrip && left) segments[i - 1] = part(segments[i - 1], 0, left.length - sizeOf(SPACES_AFTER, left));
      if (token.single_word && left && !left.endsWith(' ')) {
        segments[i - 1] = joined(segments[i - 1], segment);
        segments[i] = part(segment, 0, 0);
      } else if (token.single_word && right && !right.startsWith(' ')) {
        segments[i + 1] = joined(segment, segments[i + 1]);
        segments[i] = part(segment, 0, 0);
      }
    }
  }

  /**
   * A segment's tokens, each with its range of UTF-16 units.
   * @param {string} run
   * @returns {[string, number, number][]}
   */
  _tokens(run) {
    if (this._findsAdded && this._added.has(run)) return [[run, 0, run.length]];
    const normalized = this._model.normalize(run);
    const pieces = this._model.cut(normalized.chars);
    return pieces.flatMap(({ piece, start }, i) => {
      // A lone mark counts in mid-text only, and only if the next piece does not bring a mark of its own.
      const keepsMark = start > 0 && !this._dropsLoneMarks && !pieces[i + 1]?.piece.startsWith(WORD_START);
      if (piece === WORD_START && !keepsMark) return [];
      return splitPiece(piece).map(([token, from, to]) => {
        const [first, last] = this._sourceOf(run, normalized, start + from, start + to);
        return /** @type {[string, number, number]} */ ([token, first, last]);
      });
    });
  }

  /**
   * The range of a run that became the normalized characters `start` to `end`: up to where the next ones begin, less
   * what normalization dropped in between (control characters, repeated whitespace).
   * @param {string} run
   * @param {import('./sentencepiece.js').Normalized} normalized
   * @param {number} start
   * @param {number} end
   */
  _sourceOf(run, { origins }, start, end) {
    const last = origins[end - 1];
    let following = end;
    while (following < origins.length - 1 && origins[following] === last) following++;
    const least = last + charLength(run, last);
    let sourceEnd = Math.max(origins[following], least);
    while (sourceEnd > least) {
      const char = lastChar(run.slice(least, sourceEnd));
      if (!this._vanishes(char)) break;
      sourceEnd -= char.length;
    }
    return [origins[start], sourceEnd];
  }

  /** Whether normalization makes nothing of a character. @param {string} char */
  _vanishes(char) {
    let vanishes = this._vanishing.get(char);
    if (vanishes === undefined) {
      vanishes = !this._model.normalize(char).chars.length;
      this._vanishing.set(char, vanishes);
    }
    return vanishes;
  }

  /** The text in lower case but for special tokens, and where its units come from. @param {string} text */
  _lowered(text) {
    /** @type {{text: string, starts: number[], ends: number[]}} */
    const lowered = { text: '', starts: [], ends: [] };
    const kept = this._casePattern ? [...text.matchAll(this._casePattern)] : [];
    let at = 0;
    for (const char of text) {
      while (kept.length && at >= kept[0].index + kept[0][0].length) kept.shift();
      const isKept = kept.length > 0 && at >= kept[0].index;
      const changed = isKept ? char : char.toLowerCase(); // each by itself: no final form of sigma
      lowered.text += changed;
      for (let i = 0; i < changed.length; i++) {
        lowered.starts.push(at);
        lowered.ends.push(at + char.length);
      }
      at += char.length;
    }
    return lowered;
  }
}

/**
 * The settings in the contents of `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, each of
 * which may be missing. As in transformers, the latter two count only where the first has no `added_tokens_decoder`.
 * @param {Record<string, any>} [config]
 * @param {Record<string, any>} [specialMap]
 * @param {Record<string, number>} [addedIds]
 * @returns {Record<string, any>}
 */
export function settingsOf(config = {}, specialMap = {}, addedIds = {}) {
  const name = config.tokenizer_class ?? CLASSES[0];
  if (!CLASSES.includes(name))
    throw new ErnieMError(`the tokenizer is ${name}, expected ErnieMTokenizer, which gives other ids.`);
  if (Object.keys(config.sp_model_kwargs ?? {}).length)
    throw new ErnieMError('sp_model_kwargs in tokenizer_config.json is not supported.');
  const decoder = config.added_tokens_decoder;
  if (decoder) {
    const entries = Object.entries(decoder).map(([id, entry]) => /** @type {const} */ ([Number(id), tokenOf(entry)]));
    return { ...config, added_tokens: new Map(entries) };
  }
  const additional = [...(config.additional_special_tokens ?? []), ...(specialMap.additional_special_tokens ?? [])];
  /** @type {Record<string, any>} */
  const settings = { ...config, ...specialMap, additional_special_tokens: additional };
  const special = new Set(
    [...NAMES.map((key) => settings[key]).filter(Boolean), ...additional].map((entry) => tokenOf(entry).content),
  );
  const added = Object.entries(addedIds).map(([content, id]) => {
    const isSpecial = special.has(content);
    return /** @type {const} */ ([id, { ...tokenOf(content), normalized: !isSpecial, special: isSpecial }]);
  });
  return { ...settings, added_tokens: new Map(added) };
}

/**
 * Named and additional special tokens: by name, and without repetitions in the order in which ids are given out.
 * @param {Record<string, any>} settings
 */
function specialTokens(settings) {
  const added = new Map([...(settings.added_tokens?.values() ?? [])].map((token) => [token.content, token]));
  /** @type {Record<string, AddedToken>} */
  const byName = {};
  for (const name of NAMES) {
    const entry = name in settings ? settings[name] : /** @type {Record<string, string>} */ (DEFAULTS)[name];
    if (!entry && name in DEFAULTS)
      throw new ErnieMError(`the tokenizer's settings have no ${name}, which ErnieM needs.`);
    if (entry) byName[name] = added.get(tokenOf(entry).content) ?? tokenOf(entry);
  }
  const additional = (settings.additional_special_tokens ?? []).map((/** @type {any} */ entry) =>
    typeof entry === 'string' ? (added.get(entry) ?? tokenOf(entry)) : tokenOf(entry),
  );
  /** @type {Map<string, AddedToken>} */
  const unique = new Map();
  for (const token of [...NAMES.flatMap((name) => byName[name] ?? []), ...additional]) {
    if (!unique.has(token.content)) unique.set(token.content, token);
  }
  return { byName, all: [...unique.values()] };
}

/** @param {any} entry @returns {AddedToken} */
function tokenOf(entry) {
  const none = { lstrip: false, rstrip: false, single_word: false };
  if (typeof entry === 'string') return { ...none, content: entry, normalized: false, special: true };
  if (typeof entry?.content !== 'string')
    throw new ErnieMError(`expected a token as text or with "content", got ${JSON.stringify(entry)}.`);
  return { ...none, normalized: true, special: false, ...entry };
}

/**
 * Cut a piece as the reference does: CJK characters and punctuation stand alone, runs of digits are apart. The ranges
 * count code points of the piece, without a leading word-start mark unless the mark is all there is.
 * @param {string} piece
 * @returns {[string, number, number][]}
 */
export function splitPiece(piece) {
  const chars = [...piece];
  /** @type {[number, number][]} */
  const cuts = [];
  let begin = 0;
  for (const [i, char] of chars.entries()) {
    if (char === WORD_START) continue;
    const standsAlone = STANDS_ALONE.test(char);
    const digitsChange = i > 0 && DIGIT.test(char) !== DIGIT.test(chars[i - 1]);
    if (standsAlone || digitsChange) {
      if (i > begin && (i > begin + 1 || chars[begin] !== WORD_START)) cuts.push([begin, i]);
      begin = i;
    }
    if (standsAlone) {
      cuts.push([i, i + 1]);
      begin = i + 1;
    }
  }
  if (begin < chars.length) cuts.push([begin, chars.length]);
  return cuts.map(([start, end]) => {
    let first = start;
    while (first < end && chars[first] === WORD_START) first++;
    return [chars.slice(start, end).join(''), first < end ? first : start, end];
  });
}

/** The lines of a `vocab.txt`; the last may lack its end. @param {string} content */
function linesOf(content) {
  const lines = content.split(/\r\n|\r|\n/);
  if (lines.at(-1) === '') lines.pop();
  if (!lines.length) throw new ErnieMError('vocab.txt is empty; expected a token per line.');
  return lines;
}

/** @param {Segment} segment @param {number} start @param {number} end @returns {Segment} */
const part = ({ text, places }, start, end) => ({ text: text.slice(start, end), places: places.slice(start, end) });

/** @param {Segment} left @param {Segment} right @returns {Segment} */
const joined = (left, right) => ({ text: left.text + right.text, places: [...left.places, ...right.places] });

/** How many units a pattern takes of a text. @param {RegExp} pattern @param {string} text */
const sizeOf = (pattern, text) => text.match(pattern)?.[0].length ?? 0;

/** @param {string} a @param {string} b */
const longestFirst = (a, b) => [...b].length - [...a].length;

/** Matches any of some words, the first of them that fits; undefined if there are none. @param {string[]} words */
function anyOf(words) {
  const found = words.filter(Boolean).map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'));
  return found.length ? new RegExp(found.join('|'), 'gu') : undefined;
}

/** How many units the character at a place has. @param {string} text @param {number} place */
const charLength = (text, place) => (/** @type {number} */ (text.codePointAt(place)) > 0xffff ? 2 : 1);

/** @param {string} text */
const lastChar = (text) => /** @type {string} */ ([...text.slice(-2)].at(-1));
