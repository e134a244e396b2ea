/** Headless Chromium over its DevTools protocol, and a server of static files for it. */

import { spawn, spawnSync } from 'node:child_process';
import { readFile, rm, mkdtemp } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { extname, join, normalize } from 'node:path';

const TYPES = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.css': 'text/css',
  '.wasm': 'application/wasm',
  '.json': 'application/json',
};

/** The command that starts Chromium here; undefined if there is none. */
export const chromium = [process.env.CHROMIUM, 'chromium', 'chromium-browser', 'google-chrome'].find(
  (name) => name && spawnSync(name, ['--version']).status === 0,
);

/**
 * Serve the files below a folder; paths that start with a key of `others` come from its folder instead.
 * @param {string} folder
 * @param {Record<string, string>} others
 */
export async function serve(folder, others = {}) {
  const server = createServer(async ({ url = '/' }, response) => {
    const path = normalize(decodeURIComponent(new URL(url, 'http://here').pathname)).replace(/\/$/, '/index.html');
    const other = Object.keys(others).find((start) => path.startsWith(start));
    try {
      const content = await readFile(other ? others[other] + path.slice(other.length) : join(folder, path));
      const type = /** @type {Record<string, string>} */ (TYPES)[extname(path)] ?? 'application/octet-stream';
      response.writeHead(200, { 'Content-Type': type }).end(content);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return { url: `http://127.0.0.1:${port}/`, close: () => server.close() };
}

/** A page in a browser of its own. */
export class Page {
  /** @param {import('node:child_process').ChildProcess} browser @param {string} profile */
  constructor(browser, profile) {
    this._browser = browser;
    this._profile = profile;
    this._pipe = /** @type {import('node:stream').Writable} */ (browser.stdio[3]);
    /** @type {Map<number, {resolve: (result: any) => void, reject: (error: Error) => void}>} */
    this._waiting = new Map();
    this._sent = 0;
    /** @type {string | undefined} */
    this._session = undefined;
    /** What the page asked for. @type {string[]} */
    this.requests = [];
    /** What it complained of. @type {string[]} */
    this.complaints = [];
    const parts = /** @type {Buffer[]} */ ([]);
    /** @type {import('node:stream').Readable} */ (browser.stdio[4]).on('data', (/** @type {Buffer} */ data) => {
      for (let end; (end = data.indexOf(0)) >= 0; data = data.subarray(end + 1)) {
        this._receive(JSON.parse(Buffer.concat([...parts.splice(0), data.subarray(0, end)]).toString()));
      }
      parts.push(data);
    });
    browser.on('exit', () => {
      for (const { reject } of this._waiting.values()) reject(new Error('Chromium ended.'));
    });
  }

  /** Start a browser that reaches nothing but this machine, and open a page in it. */
  static async open() {
    const profile = await mkdtemp(join(tmpdir(), 'erniem-web-'));
    const flags = [
      '--headless=new',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--remote-debugging-pipe',
      '--no-first-run',
    ];
    flags.push(
      '--disable-background-networking',
      `--user-data-dir=${profile}`,
      '--window-size=900,900',
      '--force-color-profile=srgb',
    );
    const stdio = /** @type {const} */ (['ignore', 'ignore', 'ignore', 'pipe', 'pipe']);
    const page = new Page(spawn(/** @type {string} */ (chromium), flags, { stdio: [...stdio] }), profile);
    const { targetId } = await page.send('Target.createTarget', { url: 'about:blank' });
    page._session = (await page.send('Target.attachToTarget', { targetId, flatten: true })).sessionId;
    for (const domain of ['Page', 'Runtime', 'Network', 'Log']) await page.send(`${domain}.enable`);
    return page;
  }

  /** @param {string} method @param {Record<string, unknown>} params @returns {Promise<any>} */
  send(method, params = {}) {
    const id = ++this._sent;
    this._pipe.write(`${JSON.stringify({ id, method, params, sessionId: this._session })}\0`);
    return new Promise((resolve, reject) => this._waiting.set(id, { resolve, reject }));
  }

  /** The value of an expression in the page, or what its promise gives. @param {string} expression */
  async evaluate(expression) {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', {
      expression,
      awaitPromise: true,
      returnByValue: true,
    });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Wait until an expression is true in the page. @param {string} expression */
  async until(expression, seconds = 60) {
    for (const end = Date.now() + 1000 * seconds; !(await this.evaluate(expression));) {
      if (Date.now() > end) throw new Error(`waited ${seconds} s for ${expression}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** A PNG of what is to be seen. */
  async screenshot() {
    return Buffer.from((await this.send('Page.captureScreenshot')).data, 'base64');
  }

  async close() {
    this._browser.kill();
    if (this._browser.exitCode === null) await new Promise((resolve) => this._browser.once('exit', resolve));
    await rm(this._profile, { recursive: true, force: true, maxRetries: 5 });
  }

  /** @param {any} message */
  _receive({ id, method, params, result, error }) {
    const waiting = this._waiting.get(id);
    this._waiting.delete(id);
    if (error) waiting?.reject(new Error(error.message));
    else waiting?.resolve(result);
    if (method === 'Network.requestWillBeSent') this.requests.push(params.request.url);
    if (method === 'Runtime.exceptionThrown')
      this.complaints.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === 'Log.entryAdded' && params.entry.level === 'error')
      this.complaints.push(`${params.entry.text} ${params.entry.url ?? ''}`);
    if (method === 'Runtime.consoleAPICalled' && ['error', 'warning'].includes(params.type)) {
      this.complaints.push(params.args.map((/** @type {any} */ arg) => arg.value ?? arg.description).join(' '));
    }
  }
}
