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
const whole = await browser.target().createCDPSession();
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
  // Milliseconds since the page was asked for, at the frame in which that holds.
  async within({ script }) {
    await page.waitForFunction(script, { polling: "raf" });
    return page.evaluate("performance.now()");
  },
  // Seconds of processor time: of the page's main thread, and of every process of the browser.
  async took() {
    const { TaskDuration, ScriptDuration, LayoutDuration, RecalcStyleDuration } = await page.metrics();
    const { processInfo } = await whole.send("SystemInfo.getProcessInfo");
    const all = processInfo.reduce((sum, { cpuTime }) => sum + cpuTime, 0);
    return { main: TaskDuration, script: ScriptDuration, layout: LayoutDuration, style: RecalcStyleDuration, all, each: processInfo.map(({ type, cpuTime }) => [type, cpuTime]) };
  },
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
