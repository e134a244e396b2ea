/** What differs between the browser and Node: here, onnxruntime-web and `fetch`. */

import * as ort from 'onnxruntime-web/wasm';

export { ort };

/**
 * The content of a file beside a page, or at any URL; undefined if there is none.
 * @param {string} folder A URL, relative to the page or absolute, that ends in a slash.
 * @param {string} name
 * @returns {Promise<ArrayBuffer | undefined>}
 */
export async function read(folder, name) {
  const response = await fetch(new URL(name, new URL(folder, globalThis.location?.href)));
  if (response.status === 404) return undefined;
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}
