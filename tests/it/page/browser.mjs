// Drives a browser as it is told, a JSON object a line on its input, and answers each with a line on its output.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [modules, program] = process.argv.slice(2);
const puppeteer = createRequire(modules + "/")("puppeteer-core");
const browser = await puppeteer.launch({
  executablePath: program,
  headless: true,
  // It ends with this program, however that ends.
  pipe: true,
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"],
});
const page = await browser.newPage();
// Whatever a person would see in the console, refusals of the Content-Security-Policy among it.
const errors = [];
page.on("console", (message) => {
  if (["error", "warn"].includes(message.type())) errors.push(message.text());
});
page.on("pageerror", (error) => errors.push(String(error)));

const acts = {
  async open({ url }) {
    await page.goto(url, { waitUntil: "domcontentloaded" });
  },
  async view({ width, height, dark }) {
    await page.setViewport({ width, height });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  },
  async text() {
    for (;;) {
      try {
        return await page.evaluate(() => document.body?.innerText ?? "");
      } catch (error) {
        // The page is just being loaded anew.
        if (!String(error).includes("context was destroyed")) throw error;
      }
    }
  },
  run: ({ script }) => page.evaluate(script),
  async type({ into, text }) {
    await page.type(into, text);
  },
  async press({ key }) {
    await page.keyboard.press(key);
  },
  errors: () => errors.splice(0),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { act, ...with_ } = JSON.parse(line);
  let answer;
  try {
    answer = { ok: (await acts[act](with_)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
