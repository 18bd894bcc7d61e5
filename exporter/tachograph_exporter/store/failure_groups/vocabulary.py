"""Words of error messages that are values, belong to values, or look like values and are none."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TECHNICAL: Final = _words(
    "utf-8 utf8 utf-16 utf16 utf-32 utf_8 latin-1 latin1 iso-8859-1 iso8859-1 cp1252 cp437 gb2312 sha1 sha-1 sha256 "
    "sha-256 sha384 sha512 md5 base64 base32 base16 ipv4 ipv6 http2 http3 h2 int8 int16 int32 int64 uint8 uint16 "
    "uint32 uint64 float16 float32 float64 complex64 complex128 datetime64 s3 ec2 k8s x86_64 arm64 amd64 win32 oauth2 "
    "x509 lz4 bz2 mp3 mp4 psycopg2 psycopg3 boto3 urllib3 httplib2 jinja2 sqlite3 python3 python2 log4j neo4j db2 "
    "i18n l10n x11 v4l2 rs256 hs256 es256 aes256 aes-256 rsa2048 pep8 e2e c++11 h5 p12 pkcs12 pkcs8 ext4 bfloat16 "
    "int128 uint128 float8 float128 decimal128 sha3 blake2b blake2s ed25519 x25519 curve25519 secp256k1 md4 rc4 3des "
    "crc32 utf-7 utf-8-sig utf8mb4 utf8mb3 big5 iso-8859-15 cp1251 cp850 h264 h265 x264 x265 vp8 vp9 av1 mpeg4 mpeg2 "
    "k3s es6 es5 saml2 log4j2 struts2 web3 p2p b2b oauth1 http1 s3a s3n"
)
"""Words of the field that have a digit and are not values."""
SLASHED: Final = _words(
    "and/or either/or i/o n/a tcp/ip read/write input/output client/server start/stop begin/end yes/no "
    "true/false on/off ssl/tls he/she his/her request/response key/value http/https"
)
"""Words with a slash that are no paths."""
CALENDAR: Final = _words(
    "mon tue tues wed thu thur thurs fri sat sun monday tuesday wednesday thursday friday saturday sunday jan "
    "feb mar apr may jun jul aug sep sept oct nov dec january february march april june july august september "
    "october november december "
    "montag dienstag mittwoch donnerstag freitag samstag sonnabend sonntag januar jänner februar märz mai juni juli "
    "oktober dezember mrz okt dez "
    "lundi mardi mercredi jeudi vendredi samedi dimanche janvier février mars avril juin juillet août septembre "
    "octobre novembre décembre janv févr avr juil déc "
    "lunes martes miércoles jueves viernes sábado domingo enero febrero marzo abril mayo junio julio agosto "
    "septiembre setiembre octubre noviembre diciembre "
    "lunedì martedì mercoledì giovedì venerdì sabato domenica gennaio febbraio aprile maggio giugno luglio settembre "
    "ottobre dicembre "
    "segunda-feira terça-feira quarta-feira quinta-feira sexta-feira janeiro fevereiro março maio junho julho setembro "
    "outubro novembro dezembro "
    "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag januari februari maart mei augustus "
    "poniedziałek wtorek środa czwartek piątek sobota niedziela stycznia lutego marca kwietnia maja czerwca lipca "
    "sierpnia września października listopada grudnia "
    "понедельник вторник среда четверг пятница суббота воскресенье января февраля марта апреля мая июня июля августа "
    "сентября октября ноября декабря "
    "måndag tisdag onsdag torsdag fredag lördag söndag mars augusti mandag tirsdag lørdag søndag marts maj"
)
"""Days and months, in the languages that dates are most often written in."""
LINKS: Final = _words("of de del di")
"""What may stand between a day, a month and a year."""
UNITS: Final = _words(
    "ns us µs μs ms msec msecs millisecond milliseconds microsecond microseconds nanosecond nanoseconds s sec secs "
    "second seconds m min mins minute minutes h hr hrs hour hours d day days w week weeks month months y year years b "
    "byte bytes kb mb gb tb pb kib mib gib tib kbit mbit gbit bit bits k bn hundred thousand million billion dozen % "
    "percent pct ° deg am pm utc gmt z cet cest est edt pst pdt usd eur gbp chf fr jpy cny inr cad aud sek nok dkk "
    "pln czk zł kr € $ £ ¥ ₹ ₽ ₩ hz khz mhz ghz px pt rpm rps qps w kw v mv ago uhr г года p.m a.m pp ‰ ppm ppb °c °f "
    "km cm mm µm nm ft mi kg g mg lb lbs oz kwh mah db dbm fps dpi iops bps kbps mbps gbps tbps ki mi gi ti pi ko mo "
    "octet octets req reqs sekunde sekunden minuten stunde stunden tag tage tagen woche wochen monat monate jahr "
    "jahre heure heures jour jours semaine semaines mois année années segundo segundos minuto minutos hora horas día "
    "días dia dias semana semanas mes meses año años secondo secondi minuti ora ore giorno giorni settimana settimane"
)
"""What may follow a number and belongs to it: it changes with the number."""
SPANS: Final = _words("second minute hour day week month year")
"""Times of which one is said with an article: an hour."""
CARDINALS: Final = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
"""Numbers in words, and the parts of others such as thirty-two."""
CURRENCIES: Final = _words(
    "usd eur gbp chf jpy cny inr cad aud nzd sek nok dkk pln czk huf ron bgn try brl mxn zar krw hkd sgd thb ils aed "
    "rub uah btc eth kr rs r$ us$ a$ c$"
)
"""What may stand before a price."""
ZONES: Final = _words(
    "UTC GMT CET CEST WET WEST EET EEST MSK BST IST JST KST HKT SGT PKT ICT WIB AWST ACST ACDT AEST AEDT NZST NZDT "
    "SAST EAT CAT WAT BRT ART CLT EST EDT CST CDT MST MDT PST PDT AKST AKDT HST"
)
"""Time zones, which may follow a time."""
NO_POD: Final = _words("https xhtml mssql pgsql xmlns dhcpd")
"""Five letters without a vowel that are words of the field."""
NO_PLURAL: Final = _words(
    "does this thus plus minus versus always status exceeds series perhaps sometimes whereas canvas alias bias atlas "
    "kubernetes windows redis postgres https dns tls"
)
"""Words that end with an s and are no plural."""
PLURALS_IN_S: Final = _words("caches niches cookies movies ties lies pies zombies")
"""Words whose singular is all but the s."""
