"""The style sheet of a page, for light and dark screens, wide and narrow ones, and paper."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d2024; --soft: #5f656d;
  --rule: #e4e5e2; --link: #0b57a4; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e7e8ea; --soft: #9ba2ab;
  --rule: #2d3137; --link: #8cbcff; --bad: #ff9a90; } }
body { margin: 0 auto; max-width: 76rem; padding: clamp(1.25rem, 4vw, 3rem);
  background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
p, figure, ul { margin: 0; }
p { max-width: 52rem; }
h1 { margin: 0 0 .6rem; font-size: 2.2rem; line-height: 1.15; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .9rem; font-size: 1.25rem; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1rem; }
a { color: var(--link); text-decoration: none; }
.note, small, thead, svg { color: var(--soft); font-size: .84rem; }
.note { margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .32rem; text-align: right; border-bottom: 1px solid var(--rule); }
tr > :first-child { position: sticky; left: 0; padding-left: 0; background: var(--paper);
  white-space: normal; min-width: 8.5rem; }
.left { text-align: left; }
.rank { display: inline-block; min-width: 1.5em; color: var(--soft); }
tr > .error { color: var(--bad); white-space: normal; text-align: left; position: static; }
.error span { position: sticky; left: 0; display: inline-block; max-width: min(52rem, 84vw); }
code { font-size: .84rem; overflow-wrap: anywhere; }
thead th, th small { font-weight: 400; }
.legend, .legend li { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1.4rem; }
.legend { padding: 0; margin-bottom: 1.2rem; font-size: .9rem; }
.legend li { gap: .55rem; flex-wrap: nowrap; }
.legend span { flex: none; width: 44px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 2.2rem 2.5rem; }
figure { margin: 0 -.9rem; padding: 0 .9rem; min-width: 0; overflow-x: clip; }
.wide { grid-column: 1 / -1; }
.wide svg { min-width: 56rem; }
figcaption { margin-bottom: .4rem; font-weight: 600; font-size: .95rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
svg text { font-family: inherit !important; paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px; }
summary { padding: .4rem 0; font-size: .9rem; border-bottom: 1px solid var(--rule); }
pre { max-height: 28rem; overflow: auto; }
@media (max-width: 34rem) { figure > svg text { font-size: 14px !important; } }
@media print { .scroll { overflow: visible; } .wide svg { min-width: 0; }
  table { font-size: .56rem; white-space: normal; } thead, th small { font-size: inherit; }
  th, td { padding: .3rem .25rem; } figure, tr { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; } }
"""
