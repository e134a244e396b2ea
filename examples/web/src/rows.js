/** Between texts and the model: checks, windows over long texts, and the scores of logits. */

import { ErnieMError } from './errors.js';
import { strip } from './tokenizer.js';

const SHARED = 128;

/** A half-open range of tokens. @typedef {{start: number, stop: number}} Span */

/** @param {string} name @param {unknown} value @returns {string} */
export function requireText(name, value) {
  if (typeof value !== 'string')
    throw new ErnieMError(`${name} must be a string, got ${value === null ? 'null' : typeof value}.`);
  if (!strip(value)) throw new ErnieMError(`${name} is empty: expected text.`);
  return value;
}

/** @param {string} name @param {number} count */
export function requireTokens(name, count) {
  if (!count) throw new ErnieMError(`${name} has no tokens left after normalization: expected text.`);
}

/** @param {string} name @param {unknown} value @param {number} [least] @returns {number} */
export function requireCount(name, value, least = 1) {
  if (Number.isInteger(value) && Number(value) >= least) return Number(value);
  throw new ErnieMError(`${name} must be an integer of at least ${least}, got ${JSON.stringify(value)}.`);
}

/** @param {string} name @param {unknown} value @param {readonly any[]} choices */
export function requireChoice(name, value, choices) {
  if (!choices.includes(value))
    throw new ErnieMError(`${name} must be one of ${choices.join(', ')}, got ${JSON.stringify(value)}.`);
}

/**
 * Raise unless an input is an object with these keys and no others.
 * @param {string} task
 * @param {any} input
 * @param {string[]} required
 * @param {string[]} [optional]
 */
export function requireKeys(task, input, required, optional = []) {
  const keys = [...required, ...optional.map((key) => `${key} (optional)`)].join(', ');
  if (typeof input !== 'object' || input === null)
    throw new ErnieMError(`${task} takes an object with ${keys}, got ${typeof input}.`);
  const missing = required.find((key) => input[key] === undefined);
  if (missing) throw new ErnieMError(`${missing} is missing; ${task} takes an object with ${keys}.`);
  const unknown = Object.keys(input).find((key) => !required.includes(key) && !optional.includes(key));
  if (unknown) throw new ErnieMError(`key ${unknown} is not known; ${task} takes an object with ${keys}.`);
}

/** The text of an input that is a text, or `{text}`. @param {string} task @param {any} input */
export function textOf(task, input) {
  if (typeof input === 'object' && input !== null) requireKeys(task, input, ['text']);
  return requireText('text', typeof input === 'object' && input !== null ? input.text : input);
}

/**
 * Most tokens in a row, special ones included.
 * @param {import('./artifact.js').Manifest} manifest
 * @param {Record<string, any>} options
 */
export function limitOf({ limits, defaults }, { max_seq_len: asked }) {
  if (asked === undefined) return Math.min(defaults?.max_seq_len ?? limits.max_length, limits.max_length);
  if (requireCount('max_seq_len', asked, 3) > limits.max_length) {
    throw new ErnieMError(`max_seq_len is ${asked}; the model takes at most ${limits.max_length} tokens.`);
  }
  return Number(asked);
}

/** How many tokens neighbouring windows of `size` tokens share. @param {number} size */
export const sharedTokens = (size) => Math.min(SHARED, Math.floor(size / 2));

/**
 * Windows over `length` tokens: one every `step` tokens, each of `size`, until one reaches the end.
 * @param {number} length
 * @param {number} size
 * @param {number} step
 * @returns {Span[]}
 */
export function windows(length, size, step) {
  const count = Math.ceil(Math.max(length - size, 0) / step) + 1;
  return Array.from({ length: count }, (_, i) => ({ start: i * step, stop: Math.min(i * step + size, length) }));
}

/**
 * The part of each window that sees more text around it there than in any other.
 * @param {Span[]} spans
 * @returns {Span[]}
 */
export function bestParts(spans) {
  const middle = (/** @type {number} */ i) => Math.floor((spans[i].start + spans[i - 1].stop) / 2);
  return spans.map((span, i) => ({
    start: i ? middle(i) : span.start,
    stop: i + 1 < spans.length ? middle(i + 1) : span.stop,
  }));
}

/** Probabilities that sum to 1, in float64. @param {ArrayLike<number>} logits */
export function softmax(logits) {
  const most = Array.from(logits).reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = Float64Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / sum);
}

/** Probabilities, each by itself. @param {ArrayLike<number>} logits */
export const sigmoid = (logits) => Float64Array.from(logits, (logit) => 0.5 * (1 + Math.tanh(0.5 * logit)));

/** The index of the largest value, the first of equals. @param {ArrayLike<number>} values */
export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
