import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { answerDifferences, tokenDifferences } from './compare.js';

const OUT = fileURLToPath(new URL('../../../out/web-test/', import.meta.url));
const expected = JSON.parse(await readFile(`${OUT}expected.json`, 'utf8'));

test('tokens and offsets are those of the Python package', async () => {
  const model = new Uint8Array(await readFile(`${OUT}models/qa/sentencepiece.bpe.model`));
  const vocabulary = await readFile(`${OUT}models/qa/vocab.txt`, 'utf8');
  const differences = expected.variants.flatMap((variant) => tokenDifferences(model, vocabulary, variant));
  assert.deepEqual(differences.slice(0, 5), [], `${differences.length} differences`);
});

for (const one of expected.answers) {
  test(`${one.task} with ${JSON.stringify(one.options)} answers as the Python package does`, async () => {
    const differences = await answerDifferences(`${OUT}models/`, one);
    assert.deepEqual(differences.slice(0, 3), [], `${differences.length} of ${one.inputs.length} differ`);
  });
}
