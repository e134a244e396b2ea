/**
 * Comparisons with what the Python package gave, for Node and the browser alike. Each returns what differs, as text.
 */

import { Tokenizer, pipeline, settingsOf } from '../src/index.js';

const TOLERANCE = 1e-4;
// Characters that this engine's version of Unicode does not know yet: it cannot tell whether they are digits.
const TOO_NEW = /(?!\p{NChar})\p{Cn}/u;

/**
 * @param {Uint8Array} model
 * @param {string} vocabulary
 * @param {{name: string, files: Record<string, any>, texts: [string, number[], [number, number][]][]}} variant
 */
export function tokenDifferences(model, vocabulary, { name, files, texts }) {
  const settings = settingsOf(
    files['tokenizer_config.json'],
    files['special_tokens_map.json'],
    files['added_tokens.json'],
  );
  const tokenizer = new Tokenizer(model, vocabulary, settings);
  return texts.flatMap(([text, ids, offsets]) => {
    if (TOO_NEW.test(text)) return [];
    const places = unitsOf(text);
    const expected = { ids, offsets: offsets.map(([start, end]) => [places[start], places[end]]) };
    const found = tokenizer.encode(text);
    const same = JSON.stringify(found) === JSON.stringify(expected);
    return same
      ? []
      : [`${name}: ${JSON.stringify(text)} gave ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`];
  });
}

/**
 * @param {string} url The folder of folders.
 * @param {{task: string, head: string, options: Record<string, any>, inputs: any[], answers: any[]}} expected
 */
export async function answerDifferences(url, { task, head, options, inputs, answers }) {
  const answer = await pipeline(task, url + head, options);
  const found = await answer(inputs);
  await answer.close();
  return inputs.flatMap((input, i) => {
    const expected = inUnits(answers[i], input.context ?? input.text ?? input);
    if (isClose(found[i], expected)) return [];
    return [
      `${task} ${JSON.stringify(options)} of ${JSON.stringify(input)} gave ${JSON.stringify(found[i])}, ` +
        `expected ${JSON.stringify(expected)}`,
    ];
  });
}

/** Where each code point of a text begins, in UTF-16 units; at the end, its length. @param {string} text */
function unitsOf(text) {
  const places = [0];
  for (const char of text) places.push(places[places.length - 1] + char.length);
  return places;
}

/** An answer with its places in UTF-16 units. @param {any} answer @param {string} text @returns {any} */
function inUnits(answer, text) {
  if (Array.isArray(answer)) return answer.map((item) => inUnits(item, text));
  if (!('start' in answer)) return answer;
  const places = unitsOf(text);
  return { ...answer, start: places[answer.start], end: places[answer.end] };
}

/**
 * Whether two values are equal, numbers that are no integers within the tolerance.
 * @param {any} a
 * @param {any} b
 * @returns {boolean}
 */
function isClose(a, b) {
  if (typeof a === 'number' && typeof b === 'number')
    return a === b || (!(Number.isInteger(a) && Number.isInteger(b)) && Math.abs(a - b) <= TOLERANCE);
  if (typeof a !== 'object' || typeof b !== 'object') return a === b;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => key in b && isClose(a[key], b[key]));
}
