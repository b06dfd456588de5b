// A photo to search with: picked, dropped or pasted. It is made small here before it is sent, which
// is quicker for the shopper and for the service, and leaves behind what a camera writes into a file,
// such as where the photo was taken. As a data: address it outlives a reload of the tab.

const MAX_SIDE_PX = 1024;  // more than any encoder looks at
const QUALITY = 0.88;

/** The photo of a file, or null where the file is none. */
export async function readPhoto(file) {
  try {
    // createImageBitmap turns the picture as the camera was held
    return await shrink(await createImageBitmap(file));
  } catch {
    return null;
  }
}

async function shrink(bitmap) {
  const scale = Math.min(1, MAX_SIDE_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";  // JPEG knows no transparency, and shops photograph on white
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const address = canvas.toDataURL("image/jpeg", QUALITY);
  return { address, blob: blobOf(address) };
}

/** The bytes of a base64 data: address; fetch would need a policy that allows data: there. */
export function blobOf(address) {
  const text = atob(address.slice(address.indexOf(",") + 1));
  return new Blob([Uint8Array.from(text, (letter) => letter.charCodeAt(0))], { type: "image/jpeg" });
}

const imageIn = (transfer) => Array.from(transfer?.files ?? []).find((file) => file.type.startsWith("image/"));

/** Take photos from the button, from a drop anywhere on the page, and from the clipboard. */
export function takePhotos({ button, input, curtain, onfile }) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files[0]) onfile(input.files[0]);
    input.value = "";  // so that the same file can be picked again
  });
  document.addEventListener("paste", (event) => {
    const file = imageIn(event.clipboardData);
    if (file) event.preventDefault();
    if (file) onfile(file);
  });
  takeDrops(curtain, onfile);
}

function takeDrops(curtain, onfile) {
  const withFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    curtain.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) curtain.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    curtain.hidden = true;
    if (!withFiles(event)) return;
    event.preventDefault();  // or the browser would leave the page for the file
    onfile(imageIn(event.dataTransfer) ?? event.dataTransfer.files[0]);
  });
}
