"""Style of the page, after that of all reports."""

STYLE = """
:root { --win: 0 114 178; --loss: 213 94 0; --c0: #0072b2; --c1: #d55e00; --c2: #009e73;
  --c3: #b8558f; --c4: #8c6d00; --c5: #3f9fd8; --c6: #5a3fa0; --c7: #6b6f75; }
@media (prefers-color-scheme: dark) { :root { --win: 70 150 220; --loss: 226 110 40;
  --c0: #56b4e9; --c1: #f0803c; --c2: #2fbf95; --c3: #d98abb; --c4: #d9b440; --c5: #9ad0f5;
  --c6: #a894ea; --c7: #a0a7b0; } }
main { max-width: 76rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.6vw, 2.1rem); letter-spacing: -.01em; }
figure { margin: .8rem 0 1.2rem; }
figcaption { max-width: 46rem; margin-bottom: .4rem; }
section.verdict { padding: .3rem 1.2rem .6rem; margin: 1.2rem 0; font-size: 1rem; }
.verdict h2 { border: 0; margin: .4rem 0 .2rem; padding: 0; font-size: 1.15rem; }
.verdict ul { list-style: none; padding: 0; margin: 0; }
.verdict li { max-width: 62rem; padding: .45rem 0; margin: 0; overflow-wrap: anywhere; }
.verdict li + li { border-top: 1px solid var(--line); }
table.plain { border-collapse: separate; border-spacing: 0; }
td.word, thead th.word:not(:first-child) { text-align: left; }
td.word { white-space: normal; overflow-wrap: break-word; }
th small { font-weight: 400; }
td small { opacity: 1; color: var(--soft); font-size: .8rem; }
tbody th[scope=row] { position: sticky; left: 0; z-index: 1;
  background: var(--paper) padding-box;
  min-width: 6rem; max-width: 15rem; overflow-wrap: anywhere; padding-left: 0; }
thead th { min-width: 4rem; max-width: 11rem; overflow-wrap: break-word; }
thead small { display: block; }
.beside { display: grid; gap: 0 3rem; grid-template-columns: minmax(0, 1fr); align-items: start; }
.win { background: rgb(var(--win) / calc(var(--a) * .42)); }
.loss { background: rgb(var(--loss) / calc(var(--a) * .42)); }
.win small, .loss small { color: inherit; opacity: .85; }
table.dense { font-size: .88rem; border-collapse: separate; border-spacing: 2px; }
.dense th, .dense td { border: 0; padding: .25rem .4rem; }
.dense td { text-align: center; vertical-align: middle; border-radius: 3px; }
.dense thead th { text-align: center; min-width: 0; }
.dense thead th:not(:first-child) { text-align: center; }
.dense td small { font-size: .72rem; }
.dense tbody th { vertical-align: middle; }
.forest { max-width: 56rem; }
.forest .row { display: grid; grid-template-columns: minmax(5rem, 11rem) 1fr; gap: .8rem;
  font-size: .92rem; border-bottom: 1px solid var(--line); }
.forest .row:last-child { border: 0; }
.forest .name { overflow-wrap: anywhere; line-height: 1.2; align-self: center; padding: .25rem 0; }
.track { position: relative; min-height: 1.75rem; }
.track i, .ticks span { position: absolute; }
.mid { top: 0; bottom: 0; border-left: 1px dashed var(--soft); }
.arm { height: 2px; background: var(--blue); }
.dot { width: 9px; height: 9px; border-radius: 50%; background: var(--blue);
  margin: -3.5px 0 0 -4.5px; }
.arm, .dot { top: calc(50% - 1px); }
.pair .full { top: calc(50% - 5px); }
.pair .hollow { top: calc(50% + 4px); }
.arm.hollow { opacity: .5; }
.dot.hollow { background: var(--paper); border: 2px solid var(--blue); }
.muted { opacity: .55; }
.ticks { position: relative; height: 1.4rem; font-size: .8rem; color: var(--soft); }
.ticks span { transform: translateX(-50%); white-space: nowrap; }
.plot { max-width: 60rem; }
.plot svg { width: 100%; height: auto; display: block; }
.plot text { font-family: inherit !important; }
.plot text:not([fill]) { fill: currentColor; }
.plot .wide { display: none; }
@media (min-width: 48rem) {
  .plot .wide { display: block; } .plot .narrow { display: none; }
  .plain td small { display: inline; margin-left: .35em; }
}
@media (min-width: 75rem) { .beside { grid-template-columns: minmax(0, 1fr) auto; } }
details.group { margin: .8rem 0; }
details.group > summary { padding: .3rem 0; color: var(--soft); font-size: .92rem; }
.example { border: 1px solid var(--line); border-radius: 6px; padding: .5rem 1rem;
  margin: .8rem 0; }
.example[open] { padding-bottom: 1rem; }
.answers { display: grid; gap: .2rem 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.answer { min-width: 0; }
h4 small { font-weight: 400; }
.answer .text { max-height: 18rem; overflow: auto; }
.text { tab-size: 4; }
@media (max-width: 40rem) {
  main { padding: 1rem .9rem 3rem; }
  h2 { margin-top: 2.2rem; }
  section.verdict { padding: .2rem .9rem .4rem; }
  th, td { padding: .3rem .45rem; }
  tbody th[scope=row] { max-width: 8rem; }
  thead th { max-width: 8rem; }
  .forest .row { grid-template-columns: minmax(4.5rem, 7rem) 1fr; gap: .5rem; }
}
@media print { nav { display: none; } .answer .text { max-height: none; } }
"""
