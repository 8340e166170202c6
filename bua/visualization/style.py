"""The style sheet of bua's pages: one column that suits a phone and a desk, in light and in dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --card: #ffffff; --ink: #1c2127; --soft: #5b6570; --line: #e2e4e3; --accent: #0b5fae;
  --c0: #0b6fb8; --c1: #c9540a; --c2: #11845b; --c3: #96408c; --c4: #b58100; --c5: #3f4b57;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f24; --ink: #e6e9ec; --soft: #9ba6b1; --line: #2d333a; --accent: #6cb1f2;
    --c0: #58a9ee; --c1: #f08a45; --c2: #45bd8d; --c3: #cf86c6; --c4: #deb03c; --c5: #aab4bf;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 var(--sans); }
main { max-width: 1080px; margin: 0 auto; padding: 56px 24px 72px; }
h1 { margin: 0 0 12px; font-size: clamp(1.75rem, 1.3rem + 2vw, 2.5rem); line-height: 1.15; font-weight: 650;
  letter-spacing: -0.02em; text-wrap: balance; }
h2 { margin: 0 0 6px; font-size: 1.3rem; line-height: 1.3; font-weight: 620; letter-spacing: -0.01em; }
h3 { margin: 0 0 8px; font-size: 0.95rem; font-weight: 600; }
p { margin: 0 0 16px; max-width: 68ch; }
a { color: var(--accent); }
section { margin-top: 56px; }
.eyebrow { margin: 0 0 10px; color: var(--accent); font-size: 0.8rem; font-weight: 600; letter-spacing: 0.06em;
  text-transform: uppercase; }
.lede { font-size: 1.08rem; color: var(--soft); }
.note { color: var(--soft); font-size: 0.92rem; }

.figures { display: flex; flex-wrap: wrap; gap: 1px; margin: 32px 0 0; padding: 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.figures div { flex: 1 1 220px; padding: 18px 20px; background: var(--card); }
.figures dt { color: var(--soft); font-size: 0.86rem; line-height: 1.35; }
.figures dd { margin: 2px 0 0; font-size: 1.9rem; line-height: 1.25; font-weight: 620; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 0 9px 20px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: 0.84rem; font-weight: 500; line-height: 1.35; vertical-align: bottom; }
tbody th { text-align: left; }
tbody td { white-space: nowrap; }
.bar { width: 38%; min-width: 90px; }
.bar i { display: block; height: 8px; border-radius: 2px; background: var(--c0); }
.scores small { display: block; color: var(--soft); font-weight: 400; }
.scores .bar div { position: relative; }
.scores .bar b { position: absolute; top: -4px; width: 2px; height: 16px; margin-left: -1px; background: var(--ink); }

.switch { display: inline-flex; margin: 8px 0 20px; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); overflow: hidden; }
.switch label { padding: 7px 16px; color: var(--soft); font-size: 0.9rem; cursor: pointer; }
.switch label + label { border-left: 1px solid var(--line); }
.choice { position: absolute; opacity: 0; pointer-events: none; }
#found:checked ~ .switch [for=found], #beside:checked ~ .switch [for=beside] { color: var(--ink); font-weight: 600;
  box-shadow: inset 0 -2px var(--accent); }
#found:focus-visible ~ .switch [for=found], #beside:focus-visible ~ .switch [for=beside] {
  outline: 2px solid var(--accent); outline-offset: -2px; }
.gallery { columns: 2; column-gap: 24px; }
.gallery article { break-inside: avoid; margin: 0 0 24px; }
.gallery figure { margin: 0; min-width: 0; }
.gallery img { display: block; width: 100%; height: auto; border-radius: 6px; border: 1px solid var(--line); }
.gallery figcaption { margin-top: 6px; color: var(--soft); font-size: 0.86rem; line-height: 1.5; }
.gallery figcaption strong { color: var(--ink); }
.gallery figcaption small { display: block; }
.gallery .annotated { display: none; }
.gallery .right { color: var(--c2); }
.gallery .wrong { color: var(--c1); }
.gallery .phrase { color: var(--ink); text-decoration: underline 3px var(--c); text-underline-offset: 3px; }
.gallery .caption q { color: var(--ink); font-size: 0.95rem; }
#beside:checked ~ .gallery { columns: 1; }
#beside:checked ~ .gallery article { display: grid; grid-template-columns: 1fr 1fr; column-gap: 24px; }
#beside:checked ~ .gallery .annotated { display: block; }
.gallery.tasks, #beside:checked ~ .gallery.tasks { columns: 1; }
.gallery.tasks article, #beside:checked ~ .gallery.tasks article { display: grid; align-items: start;
  grid-template-columns: repeat(3, 1fr); gap: 20px 24px; margin: 0; padding: 28px 0;
  border-top: 1px solid var(--line); }
.gallery.tasks .caption { grid-column: span 2; }

.charts { display: grid; grid-template-columns: repeat(2, 1fr); gap: 32px 40px; margin-top: 20px; }
.charts.small { grid-template-columns: repeat(3, 1fr); gap: 28px 32px; }
.charts figure { margin: 0; min-width: 0; }
.charts h3 span { color: var(--soft); font-weight: 400; }
svg { display: block; width: 100%; height: auto; font: 12px var(--sans); font-variant-numeric: tabular-nums; }
svg text { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
.series { fill: none; stroke-width: 2; stroke-linejoin: round; }
.faint { stroke-width: 1; opacity: 0.25; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); }
.s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
.series { stroke: var(--c); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 6px; padding: 0; list-style: none;
  color: var(--soft); font-size: 0.86rem; }
.legend li::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 7px;
  border-radius: 2px; background: var(--c); vertical-align: middle; }

details { margin-top: 14px; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
summary { padding: 11px 16px; cursor: pointer; font-weight: 600; font-size: 0.95rem; }
details .scroll { padding: 0 16px 12px; }
pre { margin: 0 0 18px; padding: 13px 16px; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; font: 0.86rem/1.55 var(--mono); }
footer { margin-top: 64px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 0.86rem; }

@media (max-width: 720px) {
  main { padding: 32px 16px 48px; }
  section { margin-top: 44px; }
  .figures div { flex-basis: 140px; padding: 14px 16px; }
  .figures dd { font-size: 1.55rem; }
  .gallery, #beside:checked ~ .gallery { columns: 1; }
  #beside:checked ~ .gallery article { grid-template-columns: 1fr; row-gap: 6px; }
  .gallery.tasks article, #beside:checked ~ .gallery.tasks article { grid-template-columns: 1fr 1fr; gap: 18px 14px; }
  .gallery.tasks figure { grid-column: span 2; }
  .gallery.tasks .answered { grid-column: span 1; }
  .bar { min-width: 70px; }
  .charts, .charts.small { grid-template-columns: 1fr; }
  table { font-size: 0.88rem; }
  th, td { padding-left: 12px; }
  thead th { font-size: 0.78rem; }
}
@media (min-width: 460px) and (max-width: 720px) { .charts.small { grid-template-columns: repeat(2, 1fr); } }
"""
