"""How the page looks: one style sheet, light and dark, and the frame around the sections."""

STYLE = """
:root { color-scheme: light dark; --ink: #16191d; --soft: #565e68; --page: #f7f7f5; --card: #ffffff;
  --line: #dfe2e6; --views: #0072b2; --plain: #c04f00; --good: #00664b; --bad: #a33b00; --chip: #eef1f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9ebee; --soft: #a5adb8; --page: #101215;
  --card: #191c20; --line: #30353c; --views: #56b4e9; --plain: #f0a23a; --good: #4fd1a5;
  --bad: #ff9a66; --chip: #252a30; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main, header { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 48px; }
h1 { font-size: clamp(1.7rem, 4vw, 2.4rem); line-height: 1.15; letter-spacing: -.02em; margin: 0;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 20px 0 8px; }
.date, .reading, figcaption, .note { color: var(--soft); }
.date { margin: 0 0 6px; font-size: .9rem; }
.lead { font-size: 1.15rem; max-width: 46em; margin: 12px 0 20px; text-wrap: pretty; }
.reading { margin: 0 0 18px; max-width: 48em; font-size: .95rem; }
.note { font-size: .9rem; margin: 12px 0 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 24px;
  margin: 0 0 20px; scroll-margin-top: 12px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 24px; font-size: .9rem; }
a { color: var(--views); text-underline-offset: .2em; text-decoration-thickness: 1px; }
a:focus-visible, [tabindex]:focus-visible { outline: 2px solid var(--views); outline-offset: 2px; }
code, pre { font: .87em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { background: var(--chip); border-radius: 4px; padding: .1em .35em; overflow-wrap: anywhere; }
pre { margin: 0; padding: 16px; max-height: 32em; overflow: auto; background: var(--chip);
  border-radius: 8px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 1px;
  margin: 0 0 20px; background: var(--line); border: 1px solid var(--line); border-radius: 12px;
  overflow: hidden; }
.facts div { background: var(--card); padding: 12px 16px; display: flex; flex-direction: column-reverse;
  justify-content: flex-end; }
.facts dt { color: var(--soft); font-size: .82rem; line-height: 1.3; }
.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 9px 14px 9px 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 500; }
tbody th { font-weight: 500; }
tr:last-child > * { border-bottom: 0; }
.scores th:not(:first-child), .scores td { text-align: right; }
.scores tr > :last-child { padding-right: 0; }
.scores td, .scores code { white-space: nowrap; }
.scores code { font-weight: 400; color: var(--soft); }
.scores td { font-size: 1.1rem; }
.scores .own { font-weight: 650; }
.up { color: var(--good); } .down { color: var(--bad); }
.swatch { display: inline-block; width: 1.5em; border-top: 3px solid var(--views); vertical-align: .25em; }
.swatch.plain { border-top: 3px dashed var(--plain); }
.keyline { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0 0 12px; font-size: .9rem;
  color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 24px; }
.charts figure { margin: 0; min-width: 0; display: grid; grid-row: span 2; row-gap: 8px;
  grid-template-rows: subgrid; }
.charts svg { display: block; width: 100%; height: auto; }
.charts figcaption strong { display: block; color: var(--ink); font-weight: 600; }
.charts figcaption { font-size: .88rem; }
.level { display: grid; grid-template-columns: 132px minmax(0, 1fr); gap: 8px 20px; padding: 16px 0;
  border-top: 1px solid var(--line); }
.level h3 { margin: 0; font-size: 1.1rem; }
.level p { margin: 2px 0 0; font-size: .85rem; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(184px, 1fr)); gap: 16px 14px; }
.tiles.four { grid-template-columns: repeat(auto-fill, minmax(216px, 1fr)); }
.tiles.wide { grid-template-columns: repeat(auto-fill, minmax(258px, 1fr)); }
.sheet { display: block; width: 100%; max-width: 720px; border-radius: 7px; }
.sheet.small { image-rendering: pixelated; }
.tile { margin: 0; min-width: 0; }
.tile > div { display: flex; gap: 2px; border-radius: 7px; overflow: hidden; background: var(--chip); }
.tile > div > * { flex: 1 1 0; min-width: 0; }
.tile img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
.tile img.small { image-rendering: pixelated; }
.tile figcaption { font-size: .8rem; line-height: 1.4; margin-top: 5px; }
.tile figcaption b { color: var(--ink); font-weight: 600; }
.tile figcaption span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.gone { display: grid; place-items: center; aspect-ratio: 1; padding: 6px; font-size: .75rem;
  text-align: center; color: var(--soft); }
.ramp { display: inline-block; width: 7em; height: .7em; border-radius: 3px; margin: 0 .5em;
  background: linear-gradient(90deg, #0072b2, #9aa0a6, #e69f00); }
.details { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 2px 24px;
  margin: 20px 0 0; font-size: .88rem; }
.details div { display: flex; gap: 8px; justify-content: space-between; border-bottom: 1px solid var(--line);
  padding: 4px 0; }
.details dt { color: var(--soft); } .details dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.missing { margin: 0; padding: 16px; border: 1px dashed var(--line); border-radius: 8px; color: var(--soft); }
sub { line-height: 0; font-size: .78em; }
td.key { overflow-wrap: anywhere; }
footer { max-width: 1120px; margin: 0 auto; padding: 4px 24px 48px; color: var(--soft); font-size: .85rem; }
@media (max-width: 640px) { header { padding-top: 28px; } main, header, footer { padding-inline: 14px; }
  section { padding: 18px 14px; } .level { grid-template-columns: 1fr; }
  .tiles, .tiles.four { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); }
  th, td { padding-right: 10px; } .scores td { font-size: 1rem; } }
@media print { body { background: none; } nav { display: none; } section { break-inside: avoid-page; }
  pre { max-height: none; } }
"""

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
{header}
</header>
<main>
{sections}
</main>
<footer>Written by genview. This file needs nothing else: it can be moved, mailed and kept.</footer>
</body>
</html>
"""
