/** What differs between the browser and Node: here, onnxruntime-node and files. */

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import * as ort from 'onnxruntime-node';

export { ort };

/**
 * The content of a file in a folder or below a URL; undefined if there is none.
 * @param {string} folder A path or a URL (http, https or file) that ends in a slash.
 * @param {string} name
 * @returns {Promise<ArrayBuffer | undefined>}
 */
export async function read(folder, name) {
  if (/^https?:/.test(folder)) {
    const response = await fetch(new URL(name, folder));
    if (response.status === 404) return undefined;
    if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
    return response.arrayBuffer();
  }
  try {
    const content = await readFile(folder.startsWith('file:') ? fileURLToPath(new URL(name, folder)) : folder + name);
    return new Uint8Array(content).buffer;
  } catch (error) {
    if (/** @type {NodeJS.ErrnoException} */ (error).code === 'ENOENT') return undefined;
    throw error;
  }
}
