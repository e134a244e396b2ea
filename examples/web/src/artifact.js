/** An exported folder: its manifest, checked, its tokenizer, and its graph, ready to run. */

import { ort, read } from '#platform';

import { ErnieMError } from './errors.js';
import { Tokenizer, settingsOf } from './tokenizer.js';

/**
 * The parts of `HEAD.json` that are read here.
 * @typedef {object} Manifest
 * @property {string} format_version
 * @property {string} artifact
 * @property {string[] | null} labels
 * @property {string | null} problem_type
 * @property {{max_length: number, pad_token_id: number}} limits
 * @property {{name: string, dtype: string, shape: (string | number)[]}[]} inputs
 * @property {{name: string, dtype: string, shape: (string | number)[]}[]} outputs
 * @property {Record<string, {size: number}>} files
 * @property {{max_seq_len?: number}} [defaults]
 * @property {string} target
 * @property {string} [mask_mode]
 */

/**
 * What the graph made of a row, by output; logits of one token after the other.
 * @typedef {Record<string, Float32Array>} Outputs
 */

const FORMAT = 1;
const TARGETS = ['onnxruntime-cpu', 'portable', 'openvino'];
const MODEL = 'sentencepiece.bpe.model';

export class Artifact {
  /**
   * @param {Manifest} manifest
   * @param {Tokenizer} tokenizer
   * @param {import('onnxruntime-common').InferenceSession} session
   */
  constructor(manifest, tokenizer, session) {
    this.manifest = manifest;
    this.tokenizer = tokenizer;
    this.session = session;
  }

  /**
   * Read and check a folder, and open its graph.
   * @param {string} url The folder, or a file in it: a URL, or in Node a path.
   * @param {string} head "qa", "cls" or "ner".
   * @param {import('onnxruntime-common').InferenceSession.SessionOptions} options
   */
  static async open(url, head, options) {
    const folder = url.replace(/(onnx\/model\.onnx|[^/]*\.(onnx|json))$/, '').replace(/([^/])$/, '$1/');
    const manifest = checked(await readJson(folder, `${head}.json`), `${folder}${head}.json`, head);
    const tokenizer = await openTokenizer(folder, manifest);
    const graph = await readListed(folder, manifest, manifest.artifact);
    const weights = [`${manifest.artifact}.data`, `${manifest.artifact}_data`].filter((name) => name in manifest.files);
    const externalData = await Promise.all(
      weights.map(async (name) => ({ path: name.replace(/.*\//, ''), data: await readListed(folder, manifest, name) })),
    );
    try {
      return new Artifact(manifest, tokenizer, await ort.InferenceSession.create(graph, { externalData, ...options }));
    } catch (error) {
      throw new ErnieMError(`ONNX Runtime cannot open ${folder}${manifest.artifact}: ${messageOf(error)}`);
    }
  }

  /** The names of the labels, by id. */
  get labels() {
    const width = this.manifest.outputs.find(({ name }) => name === 'logits')?.shape.at(-1);
    const labels = this.manifest.labels ?? [];
    if (!labels.length || (typeof width === 'number' && labels.length !== width)) {
      throw new ErnieMError(
        `the manifest of ${this.manifest.artifact} names ${labels.length} labels and its logits are for ${width}. ` +
          'Export again from a checkpoint whose id2label names each of them.',
      );
    }
    return labels;
  }

  /**
   * Run rows of any lengths, those of similar length together.
   * @param {number[][]} rows
   * @param {number} batchSize Most rows in one run.
   * @returns {Promise<Outputs[]>} In the order of the rows; without padding.
   */
  async run(rows, batchSize) {
    const order = rows.map((_, i) => i).sort((a, b) => rows[a].length - rows[b].length);
    /** @type {Outputs[]} */
    const found = new Array(rows.length);
    for (let start = 0; start < order.length; start += batchSize) {
      const batch = order.slice(start, start + batchSize);
      const outputs = await this._runTogether(batch.map((i) => rows[i]));
      for (const [place, i] of batch.entries()) found[i] = outputs[place];
    }
    return found;
  }

  /** @param {number[][]} rows @returns {Promise<Outputs[]>} */
  async _runTogether(rows) {
    const length = Math.max(...rows.map((row) => row.length));
    const ids = new BigInt64Array(rows.length * length).fill(BigInt(this.manifest.limits.pad_token_id));
    const mask = new BigInt64Array(rows.length * length);
    for (const [i, row] of rows.entries()) {
      ids.set(row.map(BigInt), i * length);
      mask.fill(1n, i * length, i * length + row.length);
    }
    const feeds = {
      input_ids: new ort.Tensor('int64', ids, [rows.length, length]),
      attention_mask: new ort.Tensor('int64', mask, [rows.length, length]),
    };
    const results = await this.session.run(feeds);
    const parts = this.manifest.outputs.map(({ name, shape }) => {
      const data = /** @type {Float32Array} */ (results[name].data);
      const size = data.length / rows.length;
      const used = (/** @type {number[]} */ row) => (shape[1] === 'sequence' ? (size / length) * row.length : size);
      return { name, of: (/** @type {number} */ i) => data.slice(i * size, i * size + used(rows[i])) };
    });
    return rows.map((_, i) => Object.fromEntries(parts.map(({ name, of }) => [name, of(i)])));
  }
}

/**
 * Raise unless this package can serve what the manifest tells of.
 * @param {Manifest | undefined} manifest
 * @param {string} path
 * @param {string} head
 * @returns {Manifest}
 */
function checked(manifest, path, head) {
  if (!manifest)
    throw new ErnieMError(`there is no ${path}: expected a folder that erniem-export wrote for head ${head}.`);
  const refuse = (
    /** @type {string} */ why,
    remedy = 'Export again with --target onnxruntime-cpu and without such options.',
  ) => {
    throw new ErnieMError(`${path} ${why}, which this package cannot serve. ${remedy}`);
  };
  const version = String(manifest.format_version);
  if (!new RegExp(`^${FORMAT}(\\.|$)`).test(version)) refuse(`has format version ${version}`, `Expected ${FORMAT}.x.`);
  const mask = manifest.mask_mode ?? 'padding';
  if (mask !== 'padding') refuse(`has the attention mask "${mask}"`, 'Use the Python package.');
  if (!TARGETS.includes(manifest.target)) refuse(`was exported for ${manifest.target}`);
  const inputs = manifest.inputs.map(({ name }) => name);
  const others = inputs.filter((name) => name !== 'input_ids' && name !== 'attention_mask');
  if (others.length || inputs.length !== 2) refuse(`has the inputs ${inputs.join(', ')}`);
  return manifest;
}

/** @param {string} folder @param {Manifest} manifest */
async function openTokenizer(folder, manifest) {
  const has = (/** @type {string} */ name) => name in manifest.files;
  if (!has(MODEL))
    throw new ErnieMError(`${folder} has no ${MODEL}: its checkpoint had no tokenizer files when it was exported.`);
  const config = has('config.json') ? await readJson(folder, 'config.json') : {};
  if (config.model_type === 'xlm-roberta')
    throw new ErnieMError(`${folder} has XLM-R's tokenizer; this package has ErnieM's alone. Use the Python package.`);
  const [model, vocabulary, ...settings] = await Promise.all([
    readListed(folder, manifest, MODEL),
    has('vocab.txt') ? readListed(folder, manifest, 'vocab.txt') : undefined,
    ...['tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json'].map((name) =>
      has(name) ? readJson(folder, name) : undefined,
    ),
  ]);
  const decoded = vocabulary && new TextDecoder('utf-8', { ignoreBOM: true, fatal: true }).decode(vocabulary);
  try {
    return new Tokenizer(model, decoded, settingsOf(...settings));
  } catch (error) {
    throw error instanceof ErnieMError ? new ErnieMError(`${folder}: ${error.message}`) : error;
  }
}

/**
 * The content of a file that the manifest lists, of the size that it lists.
 * @param {string} folder
 * @param {Manifest} manifest
 * @param {string} name
 */
async function readListed(folder, manifest, name) {
  const content = await readOrRaise(folder, name);
  const size = manifest.files[name]?.size;
  if (!content) throw new ErnieMError(`there is no ${folder}${name}, which the manifest lists. Copy the whole folder.`);
  if (content.byteLength !== size) {
    throw new ErnieMError(
      `${folder}${name} has ${content.byteLength} bytes; the manifest lists ${size}. Copy the folder again.`,
    );
  }
  return new Uint8Array(content);
}

/** @param {string} folder @param {string} name @returns {Promise<any>} */
async function readJson(folder, name) {
  const content = await readOrRaise(folder, name);
  try {
    return content && JSON.parse(new TextDecoder().decode(content));
  } catch (error) {
    throw new ErnieMError(`${folder}${name} is not readable JSON: ${messageOf(error)}`);
  }
}

/** @param {string} folder @param {string} name */
async function readOrRaise(folder, name) {
  try {
    return await read(folder, name);
  } catch (error) {
    throw new ErnieMError(`${folder}${name} cannot be read: ${messageOf(error)}`);
  }
}

/** @param {unknown} error */
const messageOf = (error) => (error instanceof Error ? error.message : String(error));
