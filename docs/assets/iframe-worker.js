// Search in pages that are opened from a folder, where browsers start no worker:
// its script runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inner = frame.contentWindow
      inner.document.open()
      inner.document.write("<!doctype html><body></body>")
      inner.document.close()
      inner.postMessage = data =>
        this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inner.document.createElement("script")
      script.src = url
      this.loaded = new Promise(resolve => { script.onload = resolve })
      this.inner = inner
      inner.document.body.append(script)
    }

    postMessage(data) {
      const { inner } = this
      this.loaded.then(() =>
        inner.dispatchEvent(new inner.MessageEvent("message", { data })))
    }
  }
}
