import assert from 'node:assert/strict';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Tokenizer, pipeline, settingsOf } from '../src/index.js';
import { answerDifferences, tokenDifferences } from './compare.js';

const OUT = fileURLToPath(new URL('../../../out/', import.meta.url));
const expected = JSON.parse(await readFile(`${OUT}web-test/expected.json`, 'utf8'));

test('tokens and offsets are those of the Python package', async () => {
  const model = new Uint8Array(await readFile(`${OUT}web/models/qa/sentencepiece.bpe.model`));
  const vocabulary = await readFile(`${OUT}web/models/qa/vocab.txt`, 'utf8');
  const differences = expected.variants.flatMap((/** @type {any} */ variant) =>
    tokenDifferences(model, vocabulary, variant),
  );
  assert.deepEqual(differences.slice(0, 5), [], `${differences.length} differences`);
});

for (const one of expected.answers) {
  test(`${one.task} with ${JSON.stringify(one.options)} answers as the Python package does`, async () => {
    const differences = await answerDifferences(`${OUT}web/models/`, one);
    assert.deepEqual(differences.slice(0, 3), [], `${differences.length} of ${one.inputs.length} differ`);
  });
}

/**
 * A copy of nano's qa with other values in its manifest, for one test.
 * @param {import('node:test').TestContext} t
 * @param {Record<string, unknown>} changes
 */
async function changed(t, changes) {
  const folder = await mkdtemp(join(tmpdir(), 'erniem-web-'));
  t.after(() => rm(folder, { recursive: true }));
  await cp(`${OUT}web/models/qa`, folder, { recursive: true });
  const manifest = JSON.parse(await readFile(join(folder, 'qa.json'), 'utf8'));
  await writeFile(join(folder, 'qa.json'), JSON.stringify({ ...manifest, ...changes }));
  return folder;
}

const ids = { dtype: 'int64', shape: ['batch', 'sequence'] };
for (const [changes, message] of /** @type {const} */ ([
  [{ format_version: '2.0' }, /qa.json has format version 2.0, .* Expected 1.x/],
  [{ mask_mode: 'uie-m' }, /qa.json has the attention mask "uie-m", .* Use the Python package/],
  [{ target: 'onnxruntime-cuda-packed' }, /was exported for onnxruntime-cuda-packed, .* --target onnxruntime-cpu/],
  [
    { inputs: ['input_ids', 'attention_mask', 'position_ids'].map((name) => ({ name, ...ids })) },
    /has the inputs input_ids, attention_mask, position_ids/,
  ],
])) {
  test(`a folder whose manifest has another ${Object.keys(changes)} is refused`, async (t) => {
    await assert.rejects(pipeline('question-answering', await changed(t, changes)), { name: 'ErnieMError', message });
  });
}

test('a folder that is incomplete, or another task’s, is refused with what is wrong', async (t) => {
  const folder = await changed(t, {});
  await assert.rejects(
    pipeline('text-classification', folder),
    /there is no .*cls.json: expected a folder that erniem-export wrote for head cls/,
  );
  await writeFile(join(folder, 'vocab.txt'), '[PAD]\n');
  await assert.rejects(pipeline('question-answering', folder), /vocab.txt has 6 bytes; the manifest lists \d+/);
  await rm(join(folder, 'qa.onnx.data'));
  await cp(`${OUT}web/models/qa/vocab.txt`, join(folder, 'vocab.txt'));
  await assert.rejects(pipeline('question-answering', folder), /there is no .*qa.onnx.data, which the manifest lists/);
  await writeFile(join(folder, 'qa.json'), '<!doctype html>');
  await assert.rejects(pipeline('question-answering', folder), /qa.json is not readable JSON/);
  await assert.rejects(pipeline('fill-mask', folder), /task is "fill-mask"; expected one of question-answering/);
});

test('a folder of an XLM-R model is refused', async (t) => {
  const folder = await changed(t, {});
  await writeFile(join(folder, 'config.json'), '{"model_type": "xlm-roberta"}');
  await assert.rejects(pipeline('question-answering', folder), /has XLM-R's tokenizer; .* Use the Python package/);
});

test('the layout of optimum is read too', async () => {
  for (const url of [`${OUT}web-test/optimum`, `${OUT}web-test/optimum/onnx/model.onnx`]) {
    const qa = await pipeline('question-answering', url);
    const { answer } = await qa({ question: 'Where does she live?', context: 'She lives in Leipzig.' });
    assert.equal(answer, 'Leipzig');
  }
});

test('a file that is no unigram model, or another class’s tokenizer, is refused', () => {
  assert.throws(() => new Tokenizer(new Uint8Array([1, 2, 3]), undefined), /is not a readable sentencepiece model/);
  assert.throws(() => new Tokenizer(new Uint8Array(), undefined), /holds no pieces/);
  assert.throws(() => settingsOf({ tokenizer_class: 'XLMRobertaTokenizer' }), /expected ErnieMTokenizer/);
});

test('bad inputs and options are refused, with their place in a list', async () => {
  const qa = await pipeline('question-answering', `${OUT}web/models/qa/qa.onnx`);
  const context = 'She lives in Leipzig.';
  await assert.rejects(qa({ question: 'Where?' }), /context is missing/);
  await assert.rejects(
    qa([
      { question: 'Where?', context },
      { question: 1, context },
    ]),
    /input 1: question must be a string, got number/,
  );
  await assert.rejects(qa({ question: '\u200b', context }), /question has no tokens left/);
  await assert.rejects(
    qa({ question: 'a '.repeat(600), context }),
    /the question alone takes 600 tokens; the limit is 512/,
  );
  await assert.rejects(
    qa({ question: 'Where?', context }, { topk: 3 }),
    /takes no option topk; expected one of .*top_k/,
  );
  await assert.rejects(
    qa({ question: 'Where?', context }, { max_seq_len: 1000 }),
    /the model takes at most 512 tokens/,
  );
  assert.deepEqual(await qa([]), []);
  assert.equal((await qa({ question: 'Where does she live?', context })).answer, 'Leipzig');
});
