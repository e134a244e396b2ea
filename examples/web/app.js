/** The page: a form for each task, and what the pipelines answer. */

import { pipeline } from './src/index.js';

const MODELS = 'models/';

/** A form's fields by name. @typedef {Record<string, string>} Values */

/**
 * A task as the page shows it: the fields of its form, values for them by name, and how it answers.
 * @typedef {object} View
 * @property {string} name
 * @property {string} task
 * @property {string} head
 * @property {{name: string, label: string, rows: number}[]} fields
 * @property {(demo: any) => [string, Values][]} examples Of nano's demo.json.
 * @property {(answer: import('./src/index.js').Pipeline, given: Values) => Promise<(Node | string)[]>} show
 */

/** @type {View[]} */
const VIEWS = [
  {
    name: 'Questions',
    task: 'question-answering',
    head: 'qa',
    fields: [
      { name: 'question', label: 'Question', rows: 1 },
      { name: 'context', label: 'Context', rows: 5 },
    ],
    examples: ({ qa }) =>
      qa.flatMap((/** @type {any} */ { language, context, questions }) =>
        questions.map((/** @type {any} */ { question }) => [`${language}: ${question}`, { question, context }]),
      ),
    async show(answer, given) {
      const found = await answer(given);
      const line = element('p', element('strong', found.answer), `  ${percent(found.score)}`);
      return [line, marked(given.context, [{ ...found, name: '' }])];
    },
  },
  {
    name: 'Names',
    task: 'token-classification',
    head: 'ner',
    fields: [{ name: 'text', label: 'Text', rows: 4 }],
    examples: ({ ner }) => ner.map((/** @type {any} */ given) => example(given)),
    async show(answer, { text }) {
      const found = await answer(text, { aggregation_strategy: 'average' });
      if (!found.length) return [element('p', 'No names found.')];
      return [
        marked(
          text,
          found.map((/** @type {any} */ entity) => ({ ...entity, name: entity.entity_group })),
        ),
      ];
    },
  },
  {
    name: 'Topics',
    task: 'zero-shot-classification',
    head: 'cls',
    fields: [
      { name: 'text', label: 'Text', rows: 3 },
      { name: 'labels', label: 'Labels, with commas between them', rows: 1 },
      { name: 'template', label: 'Hypothesis, with {} for the label', rows: 1 },
    ],
    examples: ({ cls }) =>
      cls.map((/** @type {any} */ given) =>
        example(given, { labels: given.labels.join(', '), template: given.hypothesis }),
      ),
    async show(answer, { text, labels, template }) {
      const found = await answer(text, { candidate_labels: labels, hypothesis_template: template });
      return found.labels.map((/** @type {string} */ label, /** @type {number} */ i) => bar(label, found.scores[i]));
    },
  },
  {
    name: 'Inference',
    task: 'text-classification',
    head: 'cls',
    fields: [
      { name: 'text', label: 'Text', rows: 2 },
      { name: 'text_pair', label: 'Does it follow that …', rows: 2 },
    ],
    examples: () => {
      const text = 'The city of Exeter is governed by mayor Frances Winters.';
      return [
        ['entailment', { text, text_pair: 'The mayor of Exeter is called Frances Winters.' }],
        ['contradiction', { text, text_pair: 'The mayor of Exeter is called Robert Osborne.' }],
        ['neutral', { text: 'Phoenix Motors makes paint.', text_pair: 'Orion Motors makes paint.' }],
      ];
    },
    async show(answer, given) {
      const found = await answer(given, { top_k: null });
      return found.map((/** @type {any} */ { label, score }) => bar(label, score));
    },
  },
];

const demo = await (await fetch('demo.json')).json();
/**
 * Pipelines by task, opened when they are first needed.
 * @type {Map<string, Promise<import('./src/index.js').Pipeline>>}
 */
const opened = new Map();
let view = VIEWS[0];
/** @type {Map<string, Values>} */
let examples = new Map();

/**
 * The name of a text of demo.json, and the values of the fields.
 * @param {{language: string, text: string}} given
 * @param {Values} [others]
 * @returns {[string, Values]}
 */
function example({ language, text }, others = {}) {
  return [`${language}: ${text}`, { text, ...others }];
}

/** @param {View} chosen */
function choose(chosen) {
  view = chosen;
  for (const tab of byId('tasks').children) tab.setAttribute('aria-selected', String(tab.textContent === view.name));
  byId('fields').replaceChildren(...view.fields.map(fieldOf));
  examples = new Map(view.examples(demo));
  byId('examples').replaceChildren(...[...examples.keys()].map((name) => element('option', name)));
  byId('result').replaceChildren();
  fill();
  report('Ready. The model is loaded with the first answer.');
}

/** Put the chosen example into the fields. */
function fill() {
  const values = examples.get(/** @type {HTMLSelectElement} */ (byId('examples')).value) ?? {};
  for (const { name } of view.fields) fieldNamed(name).value = values[name];
}

/** @param {View['fields'][0]} field */
function fieldOf({ name, label, rows }) {
  const input = element('textarea');
  Object.assign(input, { name, rows, dir: 'auto', spellcheck: false });
  return element('label', label, input);
}

async function answer() {
  const [asked, button] = [view, /** @type {HTMLButtonElement} */ (byId('answer'))];
  const given = Object.fromEntries(asked.fields.map(({ name }) => [name, fieldNamed(name).value]));
  button.disabled = true;
  try {
    const loading = performance.now();
    const answering = await open(asked);
    const started = performance.now();
    const shown = await asked.show(answering, given);
    if (asked !== view) return;
    byId('result').replaceChildren(...shown);
    const loaded = started - loading > 20 ? `Loaded in ${Math.round(started - loading)} ms, answered` : 'Answered';
    report(`${loaded} in ${Math.round(performance.now() - started)} ms, in this page.`);
  } catch (error) {
    const problem = element('p', error instanceof Error ? error.message : String(error));
    problem.className = 'error';
    byId('result').replaceChildren(problem);
    report('No answer.');
  } finally {
    button.disabled = false;
  }
}

/** @param {View} asked */
function open({ task, head }) {
  const before = opened.get(task);
  if (before) return before;
  report('Loading the model …');
  const opening = pipeline(task, MODELS + head);
  opened.set(task, opening);
  opening.catch(() => opened.delete(task)); // so that the next try loads it again
  return opening;
}

/**
 * A text with marks where something was found.
 * @param {string} text
 * @param {{start: number, end: number, name: string}[]} found
 */
function marked(text, found) {
  const line = element('p');
  line.dir = 'auto';
  let at = 0;
  for (const { start, end, name } of found) {
    line.append(
      text.slice(at, start),
      element('mark', text.slice(start, end), ...(name ? [element('small', name)] : [])),
    );
    at = end;
  }
  line.append(text.slice(at));
  return line;
}

/** @param {string} label @param {number} score */
function bar(label, score) {
  const line = element('div');
  line.style.width = `${100 * score}%`;
  const row = element('div', element('span', label), element('span', line), element('span', percent(score)));
  row.className = 'bar';
  return row;
}

/** @param {number} score */
const percent = (score) => `${(100 * score).toFixed(1)} %`;

/** @template {keyof HTMLElementTagNameMap} Name @param {Name} name @param {(Node | string)[]} children */
function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @param {string} name */
const fieldNamed = (name) => /** @type {HTMLTextAreaElement} */ (document.querySelector(`#fields [name=${name}]`));

/** @param {string} message */
const report = (message) => byId('status').replaceChildren(message);

byId('tasks').append(
  ...VIEWS.map((one) => {
    const tab = element('button', one.name);
    tab.setAttribute('role', 'tab');
    tab.addEventListener('click', () => choose(one));
    return tab;
  }),
);
byId('examples').addEventListener('change', fill);
byId('form').addEventListener('submit', (event) => {
  event.preventDefault();
  void answer();
});
choose(VIEWS[0]);
