/** Head `qa`: the part of a context that answers a question. */

import { ErnieMError } from './errors.js';
import { limitOf, requireCount, requireKeys, requireText, requireTokens, softmax, windows } from './rows.js';
import { strip } from './tokenizer.js';

const TASK = 'question-answering';
// transformers' defaults.
const [WINDOW, STRIDE] = [384, 128];
const SPECIAL = 4;

/**
 * A token, and where an answer that begins or ends with it does.
 * @typedef {{id: number, start: number, end: number}} Token
 */
/** A possible answer. @typedef {{start: number, end: number, score: number}} Candidate */

/** @type {import('./index.js').Task} */
export const questionAnswering = {
  head: 'qa',
  options: { top_k: 1, max_answer_len: 15, handle_impossible_answer: false, doc_stride: undefined },
  prepare({ manifest, tokenizer }, options) {
    const limit = limitOf(manifest, options);
    const usual = options.max_seq_len === undefined ? Math.min(WINDOW, limit) : limit;
    const stride = options.doc_stride ?? Math.min(Math.max(Math.floor(usual / 2), 1), STRIDE);
    for (const name of ['top_k', 'max_answer_len']) requireCount(name, options[name]);
    if (requireCount('doc_stride', stride) > usual) {
      throw new ErnieMError(`doc_stride is ${stride}, more than the ${usual} tokens of a row: text would be left out.`);
    }
    return (input) => {
      requireKeys(TASK, input, ['question', 'context']);
      const question = tokenizer.encode(requireText('question', input.question)).ids;
      const tokens = tokensOf(tokenizer, requireText('context', input.context));
      requireTokens('question', question.length);
      requireTokens('context', tokens.filter(({ start, end }) => start < end).length);
      const taken = question.length + SPECIAL;
      if (taken >= limit) {
        throw new ErnieMError(
          `the question alone takes ${question.length} tokens; the limit is ${limit}, with ${SPECIAL} special tokens ` +
            'and some of the context. Shorten the question.',
        );
      }
      const room = Math.min(limit, Math.max(usual, taken + stride)) - taken;
      const parts = windows(tokens.length, room, Math.min(stride, room)).map(({ start, stop }) =>
        tokens.slice(start, stop),
      );
      const rows = parts.map((part) =>
        tokenizer.row(
          question,
          part.map(({ id }) => id),
        ),
      );
      return { rows, finish: (outputs) => answersOf(input.context, rows, parts, outputs, options) };
    };
  },
};

/**
 * Tokens of a context; an answer is the text of its tokens without whitespace at the ends.
 * @param {import('./tokenizer.js').Tokenizer} tokenizer
 * @param {string} context
 * @returns {Token[]}
 */
function tokensOf(tokenizer, context) {
  const { ids, offsets } = tokenizer.encode(context);
  return ids.map((id, i) => {
    let [start, end] = offsets[i];
    while (start < context.length && !strip(context[start])) start++;
    while (end > 0 && !strip(context[end - 1])) end--;
    return { id, start, end };
  });
}

/**
 * @param {string} context
 * @param {number[][]} rows
 * @param {Token[][]} parts
 * @param {import('./artifact.js').Outputs[]} outputs
 * @param {Record<string, any>} options
 */
function answersOf(context, rows, parts, outputs, { top_k, max_answer_len, handle_impossible_answer }) {
  const readings = outputs.map(({ start_logits, end_logits }, i) => {
    const first = rows[i].length - 1 - parts[i].length; // the context is followed by one separator
    return { start: probabilities(start_logits, first), end: probabilities(end_logits, first), tokens: parts[i] };
  });
  let spans = bestSpans(
    readings.flatMap((reading) => bestInWindow(reading, top_k, max_answer_len)),
    top_k,
  );
  if (handle_impossible_answer) {
    const score = Math.min(...readings.map(({ start, end }) => start[0] * end[0]));
    spans = bestFirst([...spans, { start: 0, end: 0, score }]).slice(0, top_k);
  }
  const found = spans.map(({ start, end, score }) => ({ answer: context.slice(start, end), score, start, end }));
  return top_k === 1 ? found[0] : found;
}

/**
 * Over `[CLS]`, which means no answer, and the context; as in transformers, the question and the separators are left
 * out.
 * @param {Float32Array} logits
 * @param {number} first
 */
const probabilities = (logits, first) => softmax([logits[0], ...logits.subarray(first, -1)]);

/** Each span once, with its best score. @param {Candidate[]} found @param {number} count */
function bestSpans(found, count) {
  /** @type {Map<string, Candidate>} */
  const best = new Map();
  for (const span of bestFirst(found)) {
    const key = `${span.start} ${span.end}`;
    if (!best.has(key)) best.set(key, span);
  }
  return [...best.values()].slice(0, count);
}

/** @param {Candidate[]} spans */
const bestFirst = (spans) => [...spans].sort((a, b) => b.score - a.score);

/**
 * Up to `count` different spans of at most `most` tokens, the best first; of equals, the one that begins or ends first.
 * @param {{start: Float64Array, end: Float64Array, tokens: Token[]}} reading
 * @param {number} count
 * @param {number} most
 */
function bestInWindow({ start, end, tokens }, count, most) {
  /** @type {Candidate[]} */
  const spans = [];
  tokens.forEach((first, i) => {
    for (const [offset, last] of tokens.slice(i, i + most).entries()) {
      if (first.start >= last.end) continue;
      spans.push({ start: first.start, end: last.end, score: start[i + 1] * end[i + offset + 1] });
    }
  });
  if (count > 1) return bestSpans(spans, count);
  const best = spans.reduce((a, b) => (b.score > a.score ? b : a), { start: 0, end: 0, score: -1 });
  return best.score < 0 ? [] : [best];
}
