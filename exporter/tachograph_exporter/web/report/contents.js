// What is known of the run: the answers of the service when the report was made.

let contents = null;

/** Read what is in the file: JSON, compressed with gzip, as base64. */
export async function open(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  contents = await new Response(stream).json();
  contents.made = Date.parse(contents.made_at);
  return contents;
}

/** The contents; they are there once they were opened. */
export function read() {
  return contents;
}
