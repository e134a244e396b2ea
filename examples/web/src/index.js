/** Text in, answers out, in the browser and in Node: `erniem_rt.pipeline` for four of its tasks. */

import { Artifact } from './artifact.js';
import { ErnieMError } from './errors.js';
import { questionAnswering } from './question-answering.js';
import { requireCount } from './rows.js';
import { textClassification, zeroShotClassification } from './text-classification.js';
import { tokenClassification } from './token-classification.js';

export { ErnieMError } from './errors.js';
export { Tokenizer, settingsOf } from './tokenizer.js';

/**
 * One prepared input: rows of ids for the model, and what makes the answer of their outputs.
 * @typedef {object} Job
 * @property {number[][]} rows
 * @property {(outputs: import('./artifact.js').Outputs[]) => any} finish
 */

/**
 * A task: its head, its options with their defaults, and what makes a job of an input (which may stand in a list).
 * @typedef {object} Task
 * @property {string} head
 * @property {Record<string, any>} options
 * @property {(artifact: Artifact, options: Record<string, any>) => (input: any, isAlone: boolean) => Job} prepare
 */

/** @type {Record<string, Task>} */
const TASKS = {
  'question-answering': questionAnswering,
  'text-classification': textClassification,
  'token-classification': tokenClassification,
  'zero-shot-classification': zeroShotClassification,
};
const COMMON = { batch_size: 16, max_seq_len: undefined };

/**
 * Answers one input, or a list of inputs with a list of answers; options as for `pipeline`, for this call.
 * @typedef {{artifact: Artifact, close: () => Promise<void>}} Opened
 * @typedef {((input: any, options?: Record<string, any>) => Promise<any>) & Opened} Pipeline
 */

/**
 * Open an exported folder.
 *
 * @example
 * const qa = await pipeline('question-answering', 'models/qa');
 * const { answer } = await qa({ question: 'Where does she live?', context: 'She lives in Leipzig.' });
 *
 * @param {string} task "question-answering", "text-classification", "token-classification" or
 *   "zero-shot-classification". Inputs, options and answers are those of the Python pipelines; `start` and `end` count
 *   UTF-16 units, as JavaScript's strings do.
 * @param {string} url The folder that erniem-export wrote: a URL, or in Node a path.
 * @param {Record<string, any>} [options] Options of the task; `session`: options of ONNX Runtime's session.
 * @returns {Promise<Pipeline>}
 * @throws {ErnieMError} The folder is incomplete, or holds what this package cannot serve.
 */
export async function pipeline(task, url, { session = {}, ...options } = {}) {
  const found = Object.hasOwn(TASKS, task) ? TASKS[task] : undefined;
  if (!found)
    throw new ErnieMError(`task is ${JSON.stringify(task)}; expected one of ${Object.keys(TASKS).join(', ')}.`);
  if (typeof url !== 'string' || !url)
    throw new ErnieMError(`expected the URL or path of an exported folder, got ${JSON.stringify(url)}.`);
  const usual = merged(task, { ...COMMON, ...found.options }, options);
  const artifact = await Artifact.open(url, found.head, session);
  /** @type {(input: any, changed?: Record<string, any>) => Promise<any>} */
  const answer = async (input, changed = {}) => {
    const asked = merged(task, usual, changed);
    requireCount('batch_size', asked.batch_size);
    const prepare = found.prepare(artifact, asked);
    if (!Array.isArray(input)) return (await answers(artifact, [prepare(input, true)], asked.batch_size))[0];
    return answers(
      artifact,
      input.map((item, i) => named(i, () => prepare(item, false))),
      asked.batch_size,
    );
  };
  return Object.assign(answer, { artifact, close: () => artifact.session.release() });
}

/** @param {Artifact} artifact @param {Job[]} jobs @param {number} batchSize */
async function answers(artifact, jobs, batchSize) {
  const outputs = await artifact.run(
    jobs.flatMap(({ rows }) => rows),
    batchSize,
  );
  let at = 0;
  return jobs.map(({ rows, finish }) => finish(outputs.slice(at, (at += rows.length))));
}

/**
 * Options with others in their place; undefined changes nothing.
 * @param {string} task
 * @param {Record<string, any>} usual
 * @param {Record<string, any>} options
 */
function merged(task, usual, options) {
  const asked = { ...usual };
  for (const [name, value] of Object.entries(options)) {
    if (!(name in usual))
      throw new ErnieMError(`${task} takes no option ${name}; expected one of ${Object.keys(usual).join(', ')}.`);
    if (value !== undefined) asked[name] = value;
  }
  return asked;
}

/** Say of which input an error is. @template T @param {number} index @param {() => T} make @returns {T} */
function named(index, make) {
  try {
    return make();
  } catch (error) {
    throw error instanceof ErnieMError ? new ErnieMError(`input ${index}: ${error.message}`) : error;
  }
}
