/** What this package throws: one message that says what was expected, what came and what to do. */
export class ErnieMError extends Error {
  name = 'ErnieMError';
}
