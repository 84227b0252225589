// Which step is shown: the slider, play and pause, one step at a time, and the speed.

const byId = (id) => document.getElementById(id);

export class Playback {
  shown = 0; // steps that the canvases show
  following = true; // the newest step, until the reader picks another
  #timer = 0; // 0 where nothing plays

  /** `most`: a function that says how many steps there are; `draw` shows the picked one. */
  constructor(most, draw) {
    this.most = most;
    this.draw = draw;
    byId("play").addEventListener("click", () => this.#timer ? this.pause() : this.play());
    byId("back").addEventListener("click", () => this.pick(this.shown - 1));
    byId("forward").addEventListener("click", () => this.pick(this.shown + 1));
    byId("step").addEventListener("input", ({ target }) => this.pick(Number(target.value)));
    byId("speed").addEventListener("change", () => this.#timer && this.play());
  }

  /** Follow the newest step. */
  restart() {
    this.pause();
    this.following = true;
  }

  pick(step) {
    this.pause();
    this.shown = Math.min(this.most(), Math.max(0, step));
    this.following = this.shown === this.most();
    this.draw();
  }

  play() {
    this.pause();
    this.following = false;
    if (this.shown >= this.most()) this.shown = 0;
    this.draw();
    const pace = Math.min(400, Math.max(40, 8000 / this.most())); // ms per step: a long run takes 8 seconds
    this.#timer = setInterval(() => {
      this.shown = Math.min(this.shown + 1, this.most());
      this.draw();
      if (this.shown === this.most()) this.pause();
    }, pace / Number(byId("speed").value));
    byId("play").textContent = "Pause";
  }

  pause() {
    clearInterval(this.#timer);
    this.#timer = 0;
    byId("play").textContent = "Play";
  }

  /** Show what is picked in the controls. */
  show() {
    if (this.following) this.shown = this.most();
    byId("step").max = this.most();
    byId("step").value = this.shown;
    byId("step").ariaValueText = byId("shown").textContent = `${this.shown} of ${this.most()}`;
  }
}
