-- CreateEnum
CREATE TYPE "MissionStatus" AS ENUM ('OPEN', 'COMPLETED');

-- CreateTable
CREATE TABLE "missions" (
    "id" BIGSERIAL NOT NULL,
    "owner_id" INTEGER NOT NULL,
    "title" TEXT NOT NULL,
    "credits" INTEGER NOT NULL,
    "priority" TEXT NOT NULL DEFAULT 'normal',
    "status" "MissionStatus" NOT NULL DEFAULT 'OPEN',
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "completed_at" TIMESTAMPTZ(3),

    CONSTRAINT "missions_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "missions_title_check" CHECK (btrim("title") <> ''),
    CONSTRAINT "missions_credits_check" CHECK ("credits" > 0),
    CONSTRAINT "missions_priority_check" CHECK ("priority" IN ('low', 'normal', 'high'))
);

-- CreateIndex
CREATE INDEX "missions_owner_id_id_idx" ON "missions"("owner_id", "id" DESC);

-- AddForeignKey
ALTER TABLE "missions" ADD CONSTRAINT "missions_owner_id_fkey"
    FOREIGN KEY ("owner_id") REFERENCES "users"("id") ON DELETE RESTRICT ON UPDATE CASCADE;
