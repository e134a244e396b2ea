/** Head `ner`: labels of tokens, words or entities, in texts of any length. */

import { ErnieMError } from './errors.js';
import {
  argmax,
  bestParts,
  limitOf,
  requireChoice,
  requireCount,
  requireTokens,
  sharedTokens,
  softmax,
  textOf,
  windows,
} from './rows.js';
import { strip } from './tokenizer.js';

const STRATEGIES = ['none', 'simple', 'first', 'average', 'max'];
// Letters, digits and marks of scripts that are written with spaces: not Thai, Lao, Myanmar, Khmer, Chinese, Japanese.
const JOINS = /^[\p{L}\p{M}\p{N}]$/u;
const UNSPACED =
  /^[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff66-\uff9f\u{20000}-\u{3ffff}]$/u;

/**
 * A range of the text and its probability of each label.
 * @typedef {{start: number, end: number, scores: ArrayLike<number>}} Token
 */
/**
 * A label, its probability, and where it was found.
 * @typedef {{label: string, score: number, start: number, end: number}} Labelled
 */

/** @type {import('./index.js').Task} */
export const tokenClassification = {
  head: 'ner',
  options: { aggregation_strategy: 'none', ignore_labels: ['O'], stride: undefined },
  prepare({ manifest, tokenizer, labels }, options) {
    const { aggregation_strategy: strategy, ignore_labels: ignored } = options;
    requireChoice('aggregation_strategy', strategy, STRATEGIES);
    if (!Array.isArray(ignored))
      throw new ErnieMError(`ignore_labels must be a list of labels, got ${JSON.stringify(ignored)}.`);
    const room = limitOf(manifest, options) - 2;
    const stride = requireCount('stride', options.stride ?? sharedTokens(room), 0);
    if (stride >= room)
      throw new ErnieMError(`stride is ${stride}; it must be less than the ${room} tokens of a window.`);
    return (input) => {
      const text = textOf('token-classification', input);
      const { ids, offsets } = tokenizer.encode(text);
      requireTokens('text', ids.length);
      const spans = windows(ids.length, room, room - stride);
      return {
        rows: spans.map(({ start, stop }) => tokenizer.row(ids.slice(start, stop))),
        finish(outputs) {
          const scores = bestParts(spans).flatMap((part, i) =>
            scoresOf(outputs[i].logits, labels.length, part, spans[i].start),
          );
          const tokens = offsets.map(([start, end], i) => ({ start, end, scores: scores[i] }));
          const found =
            strategy === 'none' ? entitiesOf(text, tokens, labels) : groupsOf(text, tokens, labels, strategy);
          return found.filter((entity) => !ignored.includes('entity' in entity ? entity.entity : entity.entity_group));
        },
      };
    };
  },
};

/**
 * Probabilities of some tokens, from the logits of a window that starts at another.
 * @param {Float32Array} logits
 * @param {number} labels
 * @param {import('./rows.js').Span} part
 * @param {number} first
 */
function scoresOf(logits, labels, part, first) {
  const place = (/** @type {number} */ token) => (token - first + 1) * labels; // after [CLS]
  return Array.from({ length: part.stop - part.start }, (_, i) =>
    softmax(logits.subarray(place(part.start + i), place(part.start + i + 1))),
  );
}

/** @param {string} text @param {Token[]} tokens @param {string[]} labels */
function entitiesOf(text, tokens, labels) {
  return tokens.map((token, i) => {
    const { label, score, start, end } = labelled(token.scores, token.start, token.end, labels);
    return { entity: label, score, index: i + 1, word: text.slice(start, end), start, end };
  });
}

/**
 * Neighbours of one kind, up to the next `B-`, with their mean score.
 * @param {string} text
 * @param {Token[]} tokens
 * @param {string[]} labels
 * @param {string} strategy
 */
function groupsOf(text, tokens, labels, strategy) {
  const entities =
    strategy === 'simple'
      ? tokens.map(({ scores, start, end }) => labelled(scores, start, end, labels))
      : wordsOf(text, tokens).map((word) =>
          labelled(scoresOfWord(word, strategy), word[0].start, word[word.length - 1].end, labels),
        );
  return neighbours(
    entities,
    (previous, entity) => !entity.label.startsWith('B-') && kindOf(entity.label) === kindOf(previous.label),
  ).flatMap((group) => {
    let [start, end] = [group[0].start, group[group.length - 1].end];
    while (start < end && !strip(text[start])) start++;
    while (end > start && !strip(text[end - 1])) end--;
    const score = group.reduce((sum, entity) => sum + entity.score, 0) / group.length;
    const label = group[0].label.replace(/^[^-]*-/, '');
    return start < end ? [{ entity_group: label, score, word: text.slice(start, end), start, end }] : [];
  });
}

/**
 * Tokens by word. A token continues the word before it if there is no whitespace between them and the characters that
 * meet are letters, digits or marks of a script written with spaces; all else is a word of its own.
 * @param {string} text
 * @param {Token[]} tokens
 */
function wordsOf(text, tokens) {
  const visible = tokens.filter(({ start, end }) => strip(text.slice(start, end)) || start === end);
  return neighbours(visible, (previous, token) => {
    if (token.start < previous.end) return true;
    const between = text.slice(previous.end, token.start);
    const isApart = [...between].some((char) => !strip(char));
    return (
      !isApart &&
      joins([...text.slice(0, previous.end).slice(-2)].at(-1)) &&
      joins([...text.slice(token.start, token.start + 2)][0])
    );
  });
}

/**
 * Lists of neighbours that belong together.
 * @template T
 * @param {T[]} items
 * @param {(previous: T, item: T) => boolean} belongs
 */
function neighbours(items, belongs) {
  /** @type {T[][]} */
  const groups = [];
  items.forEach((item, i) => {
    if (i && belongs(items[i - 1], item)) groups[groups.length - 1].push(item);
    else groups.push([item]);
  });
  return groups;
}

/** @param {Token[]} word @param {string} strategy */
function scoresOfWord(word, strategy) {
  if (strategy === 'first') return word[0].scores;
  if (strategy === 'max') return word[argmax(word.map(({ scores }) => scores[argmax(scores)]))].scores;
  return Array.from(word[0].scores, (_, i) => word.reduce((sum, { scores }) => sum + scores[i], 0) / word.length);
}

/**
 * @param {ArrayLike<number>} scores
 * @param {number} start
 * @param {number} end
 * @param {string[]} labels
 * @returns {Labelled}
 */
function labelled(scores, start, end, labels) {
  const best = argmax(scores);
  return { label: labels[best], score: scores[best], start, end };
}

/** @param {string} [char] */
const joins = (char = '') => JOINS.test(char) && !UNSPACED.test(char);

/** @param {string} label */
const kindOf = (label) => label.replace(/^[BI]-/, '');
