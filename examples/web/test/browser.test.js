import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Page, chromium, serve } from './chromium.js';

const HERE = fileURLToPath(new URL('.', import.meta.url));
const OUT = fileURLToPath(new URL('../../../out/', import.meta.url));
const skip = chromium
  ? false
  : 'Chromium is not installed: install it (Debian: apt-get install chromium), or set CHROMIUM';

/** @type {Page} */
let page;
/** @type {Awaited<ReturnType<typeof serve>>} */
let server;

before(async () => {
  if (skip) return;
  server = await serve(`${OUT}web`, { '/test/': HERE, '/expected.json': `${OUT}web-test/expected.json` });
  page = await Page.open();
  await page.send('Page.navigate', { url: server.url });
  await page.until('document.querySelector("#status")?.textContent.startsWith("Ready")');
});

after(async () => {
  await page?.close();
  server?.close();
});

/**
 * Choose a tab and an example, and answer it.
 * @param {string} tab
 * @param {string} example
 * @returns {Promise<string>} What the page shows.
 */
async function shown(tab, example) {
  await page.evaluate(`{
    [...document.querySelectorAll('#tasks button')].find((one) => one.textContent === ${JSON.stringify(tab)}).click();
    const examples = document.querySelector('#examples');
    examples.value = ${JSON.stringify(example)};
    examples.dispatchEvent(new Event('change'));
    document.querySelector('#answer').click();
  }`);
  await page.until('document.querySelector("#result").textContent && !document.querySelector("#answer").disabled');
  return page.evaluate('document.querySelector("#result").innerText');
}

test('the page answers every example', { skip }, async () => {
  const demo = JSON.parse(await readFile(`${OUT}web/demo.json`, 'utf8'));
  for (const label of ['entailment', 'contradiction', 'neutral']) {
    assert.ok((await shown('Inference', label)).startsWith(label));
  }
  for (const { language, text, answer } of demo.cls) {
    assert.ok((await shown('Topics', `${language}: ${text}`)).startsWith(answer));
  }
  for (const { language, text, entities } of demo.ner) {
    const found = await shown('Names', `${language}: ${text}`);
    for (const [name, label] of entities) assert.ok(found.includes(`${name}${label}`), `${name} in ${found}`);
  }
  for (const { language, questions } of demo.qa.toReversed()) {
    for (const { question, answer } of questions.toReversed()) {
      assert.ok((await shown('Questions', `${language}: ${question}`)).startsWith(`${answer} `));
    }
  }
  await writeFile(`${OUT}web-test/screenshot.png`, await page.screenshot());
});

test('the page says what is wrong with its input, and answers again', { skip }, async () => {
  await page.evaluate(
    'document.querySelector("[name=question]").value = " "; document.querySelector("#answer").click()',
  );
  await page.until('document.querySelector("#result .error")');
  assert.equal(await page.evaluate('document.querySelector("#result").innerText'), 'question is empty: expected text.');
  assert.match(await shown('Questions', 'de: Wo wurde Johanna Keller geboren?'), /^Rostock /);
});

test('tokens and answers in the browser are those of the Python package', { skip }, async () => {
  const expected = JSON.parse(await readFile(`${OUT}web-test/expected.json`, 'utf8'));
  const differences = await page.evaluate(`(async () => {
    const { answerDifferences, tokenDifferences } = await import('/test/compare.js');
    const read = async (url) => (await fetch(url)).arrayBuffer();
    const { variants, answers } = JSON.parse(new TextDecoder().decode(await read('/expected.json')));
    const model = new Uint8Array(await read('/models/qa/sentencepiece.bpe.model'));
    const vocabulary = new TextDecoder().decode(await read('/models/qa/vocab.txt'));
    // All texts are compared in Node, whose engine this is too.
    const some = variants.map((one) => ({ ...one, texts: one.texts.filter((_, i) => i % 10 === 0) }));
    const found = some.flatMap((variant) => tokenDifferences(model, vocabulary, variant));
    for (const one of answers) found.push(...(await answerDifferences('/models/', one)));
    return found;
  })()`);
  assert.ok(expected.answers.length > 10);
  assert.deepEqual(differences.slice(0, 3), [], `${differences.length} differences`);
});

test('the page asks no other server, and complains of nothing', { skip }, () => {
  assert.deepEqual(
    page.requests.filter((url) => !url.startsWith(server.url) && !/^(data|blob):/.test(url)),
    [],
  );
  assert.ok(page.requests.some((url) => url.endsWith('.wasm')));
  assert.deepEqual(page.complaints, []);
});
