/** Head `cls`: which labels fit a text or a pair of texts, and labels that the model was not trained on. */

import { ErnieMError } from './errors.js';
import {
  limitOf,
  requireChoice,
  requireCount,
  requireKeys,
  requireText,
  requireTokens,
  sigmoid,
  softmax,
  textOf,
} from './rows.js';
import { strip } from './tokenizer.js';

const FUNCTIONS = { sigmoid, softmax, none: (/** @type {ArrayLike<number>} */ logits) => Float64Array.from(logits) };
const NAMES = Object.keys(FUNCTIONS);
const PLACE = '{}';
// Commas of Latin, Chinese, Arabic, Ethiopic, Mongolian and N'Ko script; those that divide smaller parts.
const COMMA = /[,，﹐︐،፣᠂᠈߸]/;
const ENUMERATION_COMMA = /[、､﹑︑]/;

/** @type {import('./index.js').Task} */
export const textClassification = {
  head: 'cls',
  options: { top_k: 'best', function_to_apply: undefined },
  prepare(artifact, options) {
    const { manifest, tokenizer, labels } = artifact;
    const limit = limitOf(manifest, options);
    const { top_k, function_to_apply = usualFunction(manifest, labels.length) } = options;
    requireChoice('function_to_apply', function_to_apply, NAMES);
    if (top_k !== 'best' && top_k !== null) requireCount('top_k', top_k);
    const scored = FUNCTIONS[/** @type {keyof typeof FUNCTIONS} */ (function_to_apply)];
    return (input, isAlone) => {
      const isText = typeof input !== 'object' || input === null;
      const given = isText ? { text: input } : input;
      requireKeys('text-classification', given, ['text'], ['text_pair']);
      const first = tokenizer.encode(requireText('text', given.text)).ids;
      requireTokens('text', first.length);
      const second =
        given.text_pair == null ? undefined : tokenizer.encode(requireText('text_pair', given.text_pair)).ids;
      if (second) requireTokens('text_pair', second.length);
      const [kept, other] = tokenizer.shortened(limit - (second ? 4 : 2), first, second);
      return {
        rows: [tokenizer.row(kept, other)],
        finish([{ logits }]) {
          const scores = scored(logits);
          const ranked = bestFirst(labels.map((label, i) => ({ label, score: scores[i] })));
          if (top_k !== 'best') return ranked.slice(0, top_k ?? ranked.length);
          return isText && isAlone ? [ranked[0]] : ranked[0]; // as transformers' pipelines do
        },
      };
    };
  },
};

/** @type {import('./index.js').Task} */
export const zeroShotClassification = {
  head: 'cls',
  options: { candidate_labels: undefined, hypothesis_template: 'This example is {}.', multi_label: false },
  prepare({ manifest, tokenizer, labels }, options) {
    const limit = limitOf(manifest, options);
    const candidates = candidatesOf(options.candidate_labels);
    const template = requireText('hypothesis_template', options.hypothesis_template);
    if (!template.includes(PLACE))
      throw new ErnieMError(
        `hypothesis_template must be text with ${PLACE} where the label goes, got ${JSON.stringify(template)}.`,
      );
    const hypotheses = candidates.map((label) => {
      requireTokens(`candidate label ${JSON.stringify(label)}`, tokenizer.encode(label).ids.length);
      const { ids } = tokenizer.encode(template.replaceAll(PLACE, () => label));
      if (limit - 4 - ids.length < 1) {
        throw new ErnieMError(
          `the hypothesis for candidate label ${JSON.stringify(label)} alone takes ${ids.length} tokens; ` +
            `the limit is ${limit}. Shorten it.`,
        );
      }
      return ids;
    });
    const entailment = labelId(labels, 'entail');
    const contradiction =
      options.multi_label || candidates.length === 1 ? labelId(labels, 'contra', entailment) : undefined;
    return (input) => {
      const sequence = textOf('zero-shot-classification', input);
      const ids = tokenizer.cut(tokenizer.encode(sequence).ids, limit);
      requireTokens('text', ids.length);
      return {
        rows: hypotheses.map((second) => tokenizer.row(tokenizer.cut(ids, limit - 4 - second.length), second)),
        finish(outputs) {
          const scores =
            contradiction === undefined
              ? softmax(outputs.map(({ logits }) => logits[entailment]))
              : outputs.map(({ logits }) => softmax([logits[contradiction], logits[entailment]])[1]);
          const ranked = bestFirst(candidates.map((label, i) => ({ label, score: scores[i] })));
          return { sequence, labels: ranked.map(({ label }) => label), scores: ranked.map(({ score }) => score) };
        },
      };
    };
  },
};

/** transformers' choice. @param {import('./artifact.js').Manifest} manifest @param {number} labels */
function usualFunction({ problem_type }, labels) {
  if (problem_type === 'regression') return 'none';
  return problem_type === 'multi_label_classification' || labels === 1 ? 'sigmoid' : 'softmax';
}

/** @template {{score: number}} T @param {T[]} scored @returns {T[]} */
const bestFirst = (scored) => [...scored].sort((a, b) => b.score - a.score);

/** @param {unknown} given A list of labels, or one text with commas. @returns {string[]} */
function candidatesOf(given) {
  const divider = typeof given === 'string' && !COMMA.test(given) ? ENUMERATION_COMMA : COMMA;
  const labels = typeof given === 'string' ? given.split(divider).map(strip).filter(Boolean) : given;
  if (!Array.isArray(labels) || !labels.length) {
    throw new ErnieMError('zero-shot-classification needs candidate_labels, like ["politics", "sports"].');
  }
  labels.forEach((label, i) => requireText(`candidate_labels[${i}]`, label));
  const twice = labels.find((label, i) => labels.indexOf(label) < i);
  if (twice) throw new ErnieMError(`candidate_labels has ${JSON.stringify(twice)} twice: give each label once.`);
  return labels;
}

/**
 * The one label that starts with a prefix; of two labels, the other one.
 * @param {string[]} labels
 * @param {string} prefix
 * @param {number} [other]
 */
function labelId(labels, prefix, other) {
  const found = labels.flatMap((label, i) => (label.toLowerCase().startsWith(prefix) ? [i] : []));
  if (!found.length && other !== undefined && labels.length === 2) return 1 - other;
  if (found.length !== 1) {
    throw new ErnieMError(
      `zero-shot-classification needs a model whose labels name one that starts with "${prefix}"; this one's are ` +
        `${labels.join(', ')}. Use a model trained on natural language inference, exported with its label names.`,
    );
  }
  return found[0];
}
